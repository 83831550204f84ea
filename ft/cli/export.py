"""Write a run or a model as one GGUF file, for llama.cpp."""

import argparse
from pathlib import Path

from ft import files
from ft.cli import console
from ft.errors import UserError
from ft.models.sources import license_of
from ft.runs import export, merge, opened
from ft.runs.card_header import hub_name, title
from ft.text.modelfile import modelfile


def arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``ft export``."""
    parser.epilog = "example: ft export runs/mtnt_lora mtnt.gguf"
    parser.add_argument(
        "name", metavar="RUN|MODEL", help="a run, or a model: folder, Hub id, or `embedded`"
    )
    parser.add_argument("out", metavar="OUT.gguf", type=Path, help="the file to write")
    parser.add_argument(
        "--type",
        "--outtype",
        dest="outtype",
        default="f16",
        help="of the weights: f16, bf16, f32, q8_0, q6_k, q5_k_m, q4_k_m or q4_0 (default f16)",
    )
    console.any_base_option(parser)


def command(name: str, out: Path, outtype: str, any_base: bool = False) -> None:
    """Write the file, a run's adapter merged into its base, and say what the file cannot hold."""
    from ft.models import sources

    export.check(out, outtype)
    if run := opened.find(name, any_base=any_base):
        origin = sources.fetch(run.base, weights=False)
        export.architecture(origin)  # before the work of merging
        base = hub_name(run.record["model"])
        about = {
            "name": title(run.record, run.folder),
            "base": base,
            "license": license_of(base)[0],
        }
        with files.beside(out.with_suffix("")) as hidden:
            folder = run.folder
            if not run.whole:
                folder = hidden / "merged"
                print(f"merged: {merge.merge_run(run, folder)}")
            # a run has the tokenizer's fast form alone
            tensors = export.write(folder, out, outtype=outtype, pieces=origin, **about)
    else:
        known = sources.published_name(name)
        tensors = export.write(
            sources.fetch(name),
            out,
            outtype=outtype,
            name=Path(known).name,
            license=license_of(known)[0],
        )
    print(f"{out}: {tensors} tensors, {outtype}, {out.stat().st_size / 1e6:,.0f} MB")
    if run:
        _for_ollama(out, run)


def _for_ollama(out: Path, run: opened.Finished) -> None:
    """Write the template beside the file, which has no room for it, and say what else it cannot hold."""
    from ft.models.load import load_tokenizer

    if stop := run.template.stop:
        print(
            f"GGUF has no room for stop strings; give your program these: {', '.join(map(repr, stop))}"
        )
    file = out.with_suffix(".Modelfile")
    end, greedy = str(load_tokenizer(run.base).eos_token), run.task == "translation"
    try:
        files.write_text(file, modelfile(out.name, run.template, end=end, greedy=greedy))
    except UserError as error:
        print(f"Ollama: no Modelfile, as {error}")
        return
    print(f"Ollama: ollama create {out.stem} -f {file}")
