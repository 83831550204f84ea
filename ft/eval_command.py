"""`ft eval`: base against tuned on a split of the run's data or on other data, scored as at the end of the run."""

import argparse
from pathlib import Path
from typing import Any

from ft.errors import UserError


def arguments(parser: argparse.ArgumentParser) -> None:
    a = parser.add_argument
    a("run_folder", metavar="RUN", help="a run's folder, or a Hub repository")
    a("--data", help="MTNT's folder or archive; a file of instructions (default: as the run's)")
    a("--split", default="test", help="train, valid or test (default test)")
    a("--limit", type=int, help="score only the first rows")
    a("--precision", default="auto", help="auto, fp32, bf16 or nf4 (default auto)")
    a("--max-new-tokens", type=int, default=256, help="longest answer (default 256)")
    a("--json", type=Path, help="also write the result to this file")


def command(
    run_folder: str,
    data: str | None,
    split: str,
    limit: int | None,
    precision: str,
    max_new_tokens: int,
    json: Path | None,
) -> None:
    """Score a finished run. Raises ``UserError`` for data that is not of the run's kind."""
    from ft import answers, evaluate, runs, tokens
    from ft.files import write_json

    run = runs.finished(run_folder)
    rows = _rows(run, data, split)
    rows = rows.head(limit) if limit else rows
    print(f"{split} {len(rows):>7,} rows  {rows.origin}")
    model, tokenizer = runs.load(run, precision)
    encoded = tokens.encode_rows(
        rows,
        run.template,
        tokenizer,
        max_length=run.settings["max_length"],
        seed_parity=run.settings.get("second_bos", False),
    )
    common: dict[str, Any] = {
        "packing": tokens.packs_exactly(model),
        "max_new_tokens": max_new_tokens,
        "base": runs.load(run, precision, tuned=False)[0] if run.whole else None,
    }
    if run.translates:
        ask = {"source": "Hello, my name is Morgane."}
        scored, judge = rows, evaluate
    else:
        ask = {"instruction": "How can I make brownies?"}
        scored, judge = [rows[i] for i in encoded.rows], answers
    result = judge.before_after(
        model, tokenizer, run.template, scored, encoded.examples, ask=ask, **common
    )
    print(judge.table(result, split))
    if json:
        write_json(json, result)


def _rows(run: Any, data: str | None, split: str) -> Any:
    from ft import instructions
    from ft.data import mtnt
    from ft.rows import one_of

    s = run.settings
    one_of("split", split, ("train", "valid", "test"))
    if run.translates:
        return mtnt(split, s["language_pair"], data or s["data"])
    if data:
        if split != "test":
            raise UserError(
                f"--split {split}: other data than the run's is scored whole; leave it out"
            )
        return instructions.instructions(data)
    options = ("categories", "no_context", "drop_duplicates", "valid_rows", "test_rows", "seed")
    chosen = {key: s[key] for key in options}
    return instructions.splits(s["data"], **chosen, on_bad_row=s["on_bad_row"])[split]
