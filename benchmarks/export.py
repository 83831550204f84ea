"""What llama.cpp answers with a run's files of each type, beside the merged model's greedy answers in fp32.

python benchmarks/export.py runs/mtnt_lora --data PATH/TO/MTNT --lines 50

`ft export --verify` says the same of one file. Needs llama.cpp: `pip install llama-cpp-python`, which compiles it,
or llama-cpp-py-sync. Where an answer differs, the two tokens' logits in the reference say by how much they differ
there: a near tie, or a fault.
"""

import argparse
import tempfile
from pathlib import Path

from ft.runs import export, merge, opened
from ft.score import exported
from ft.score.splits import rows_of
from ft.text import tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run")
    parser.add_argument("--data")
    parser.add_argument("--lines", type=int, default=50)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--outtype", nargs="+", default=["f32", "f16", "bf16", "q8_0"])
    options = parser.parse_args()

    run = opened.finished(options.run)
    rows = rows_of(run, options.data, "test").head(options.lines)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "merged"
        print(merge.merge_run(run, folder))
        o = opened.load(str(folder), "fp32", template=run.template)
        longest = run.settings["max_length"]
        encoded = tokens.encode_rows(rows, run.template, o.tokenizer, max_length=longest)
        print(
            f"{'':7}{'MB':>6}{'prompts':>9}{'answers':>9}{'tokens':>8}{'gap':>8}{'perplexity':>12}"
        )
        for outtype in options.outtype:
            file = Path(place) / f"{outtype}.gguf"
            export.write(folder, file, outtype=outtype, name="merged")
            found = exported.compare(
                *(file, o.model, o.tokenizer, run.template, encoded.examples),
                max_new_tokens=options.max_new_tokens,
            )
            gap = max((parting.margin for parting in found.partings), default=0.0)
            print(
                f"{outtype:7}{file.stat().st_size / 1e6:6.0f}{found.alike:6}/{found.answers}"
                f"{found.answers - len(found.partings):6}/{found.answers}{found.common:8.1%}{gap:8.3f}"
                f"{found.perplexity:12.3f} ({found.worse:+.1%})",
                flush=True,
            )
            file.unlink()


if __name__ == "__main__":
    main()
