"""Write a run or a model as one GGUF file, for llama.cpp."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ft import files, machine
from ft.cli import console
from ft.errors import UserError
from ft.models.sources import license_of
from ft.runs import elsewhere, export, merge, opened
from ft.runs.card_header import hub_name, title
from ft.text.modelfile import modelfile

if TYPE_CHECKING:
    from ft.score.exported import Agreement

ROWS = 16  # of a comparison
LONGEST = 64  # tokens of an answer there
WORSE = 0.25  # by how much the perplexity may be higher
ROUNDED = (
    "the embedded base has the values of a q4_k_m file: what a run changes is smaller than their steps, and the "
    "same type rounds it away; take q8_0 or more"
)
TASKS = ("translation", "instructions", "reasoning")  # that prompts are answered in


def arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``ft export``."""
    parser.epilog = "example: ft export runs/mtnt_lora mtnt.gguf --type q4_k_m --verify"
    a = parser.add_argument
    a("name", metavar="RUN|MODEL", help="a run, or a model: folder, Hub id, or `embedded`")
    a("out", metavar="OUT.gguf", type=Path, help="the file to write")
    a(
        "--type",
        "--outtype",
        dest="outtype",
        default="f16",
        help="of the weights: f16, bf16, f32, q8_0, q6_k, q5_k_m, q4_k_m or q4_0 (default f16)",
    )
    a(
        "--verify",
        metavar="ROWS",
        type=int,
        nargs="?",
        const=ROWS,
        help="compare llama.cpp's greedy answers and perplexity on so many validation rows with the "
        f"run's (default {ROWS})",
    )
    a("--data", help="with --verify: other rows than the run's, as ft eval takes them")
    a(
        "--min-equal",
        type=float,
        metavar="SHARE",
        help="with --verify: fail where fewer answers are equal (default: by the type)",
    )
    console.adapter_options(parser)


def command(
    name: str,
    out: Path,
    outtype: str,
    any_base: bool = False,
    model: str | None = None,
    template: str | None = None,
    verify: int | None = None,
    data: str | None = None,
    min_equal: float | None = None,
) -> None:
    """Write the file, a run's adapter merged into its base, and say what the file cannot hold."""
    from ft.models import sources

    export.check(out, outtype)
    _check_options(verify, data, min_equal)
    compared = None
    if run := opened.find(name, any_base=any_base, model=model, template=template):
        if run.base == "embedded" and outtype == "q4_k_m":
            print(ROUNDED)
        rows = _rows(run, data, verify) if verify else None
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
            if rows:
                compared = _compared(run, folder, out, rows)
    elif verify:
        raise UserError(f"--verify is for a run, which has rows and a template; {name} is a model")
    else:
        if template:
            raise UserError(
                f"--template {template}: {name} is a model, whose own chat template goes along"
            )
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
    if compared:
        agreement, precision = compared
        least = min(export.EQUAL.get(kind, 0.0) for kind in (outtype, precision.replace("fp", "f")))
        _judge(agreement, least if min_equal is None else min_equal, out)


def _check_options(verify: int | None, data: str | None, min_equal: float | None) -> None:
    from ft.models import llama

    if verify is None:
        for flag, value in (("data", data), ("min-equal", min_equal)):
            if value is not None:
                raise UserError(f"--{flag} does not go without --verify")
        return
    if verify < 1:
        raise UserError(f"--verify {verify}: it must be 1 or more")
    if min_equal is not None and not 0 <= min_equal <= 1:
        raise UserError(f"--min-equal {min_equal}: a share, from 0 to 1")
    llama.check("--verify needs")


def _rows(run: opened.Finished, data: str | None, count: int) -> Any:
    """The first rows to compare answers on."""
    from ft.score import splits

    run.check_own("to compare answers")
    if run.task not in TASKS:
        raise UserError(
            f"--verify compares answers to prompts; {run.named} learnt {run.task}: leave it out"
        )
    rows = splits.rows_of(run, data, "test" if data else "valid").head(count)
    if not len(rows):
        raise UserError(
            f"{rows.origin}: it has no row to compare answers on; name some with --data"
        )
    return rows


def _compared(run: opened.Finished, folder: Path, out: Path, rows: Any) -> "tuple[Agreement, str]":
    """The file beside the model that it was written from, and the precision of that."""
    from ft.models.load import load_config
    from ft.score import exported
    from ft.text import tokens

    # in 16 bits the model itself would round where the file does not
    stored = str(load_config(str(folder)).dtype)
    size = sum(file.stat().st_size for file in files.weight_files(folder))
    fits = size * (1 if stored.endswith("float32") else 2) < 0.8 * machine.free_memory()[0]
    precision = "fp32" if fits else "bf16"
    if run.whole:
        o = opened.load(run, precision)
    else:
        o = opened.load(str(folder), precision, template=run.template)
    longest = run.settings["max_length"]
    encoded = tokens.encode_rows(rows, run.template, o.tokenizer, max_length=longest)
    print(f"comparing on {rows.origin}, the model in {precision}")
    found = exported.compare(
        out, o.model, o.tokenizer, run.template, encoded.examples, max_new_tokens=LONGEST
    )
    return found, precision


def _judge(agreement: "Agreement", least: float, out: Path) -> None:
    """Show it. Raises ``UserError`` where too few answers are equal, or the text is less likely by far."""
    print(f"\nllama.cpp with {out.name} beside the model:\n{agreement}")
    wrong = []
    if agreement.share < least:
        wrong.append(
            f"{agreement.share:.0%} of its answers are the model's, where {least:.0%} is the least"
        )
    if agreement.worse > WORSE:
        wrong.append(
            f"its perplexity is {agreement.worse:.0%} above the model's ({WORSE:.0%} at most)"
        )
    if wrong:
        raise UserError(
            f"{out} is not the model: {', and '.join(wrong)}. The file stays; take a type of more bits"
        )


def _for_ollama(out: Path, run: opened.Finished) -> None:
    """Write the template beside the file, which has no room for it, and say what else it cannot hold."""
    from ft.models.load import load_tokenizer

    if run.trained_with is None:
        print(f"Ollama: no Modelfile, as {elsewhere.unasked(run.named)}")
        return
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
