"""Train a tokenizer on a corpus."""

import argparse
from pathlib import Path

from ft.data import tokenizer


def arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``ft tokenizer``."""
    parser.epilog = "example: ft tokenizer train CORPUS --out DIR"
    parser.add_argument("action", choices=["train"], help="train a new one")
    parser.add_argument(
        "corpus",
        nargs="+",
        help="files (.txt, .jsonl, .lines, also .gz and .zst), folders, globs, hub:owner/name, builtin",
    )
    parser.add_argument("--vocab-size", type=int, default=8000, help="pieces (default 8000)")
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    parser.add_argument("--text-field", default="text", help="of jsonl; several as a+b")
    parser.add_argument("--on-bad-row", default="error", help="error, skip or replace")
    parser.add_argument(
        "--limit", type=int, default=100_000_000, help="characters to learn from (default 100 M)"
    )


def command(
    action: str,
    corpus: list[str],
    vocab_size: int,
    out: Path,
    text_field: str,
    on_bad_row: str,
    limit: int,
) -> None:
    """``ft tokenizer train``."""
    print(
        tokenizer.train(
            corpus,
            out,
            vocab_size=vocab_size,
            limit=limit,
            text_field=text_field,
            on_bad_row=on_bad_row,
        )
    )
