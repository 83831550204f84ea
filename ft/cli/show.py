"""Examples with supervised tokens marked, length histogram, counts."""

import argparse
import dataclasses
import sys
from pathlib import Path

from ft import files


def arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``ft show``."""
    parser.epilog = "example: ft show recipes/mtnt_lora.py --examples 5"
    parser.add_argument(
        "recipe", type=files.recipe, help="a recipe's name or file; its own flags may follow"
    )
    parser.add_argument("--examples", type=int, default=3, help="how many to print (default 3)")


def command(recipe: Path, rest: list[str], examples: int) -> None:
    """What the model of a recipe will see."""
    from ft.models import vision
    from ft.models.load import load_tokenizer
    from ft.runs import opened
    from ft.text import tokens

    module, config = opened.recipe(recipe, rest, pairs=True)
    sees = hasattr(config, "train_vision")
    see = vision.reader(config.model_name_or_path) if sees else None
    tokenizer = load_tokenizer(config.model_name_or_path)
    template = module.template(config, tokenizer)
    encode = getattr(module, "encode", tokens.encode_rows)  # documents have windows
    splits = module.rows(config)
    for split, rows in splits.items():
        options: dict = {"max_length": config.max_length}
        if hasattr(config, "length_policy"):
            options["policy"] = config.length_policy
        if see:
            encoded = vision.encode(rows, template, tokenizer, see, **options)
        else:
            if encode is tokens.encode_rows:
                options["seed_parity"] = getattr(config, "second_bos", False)
                options["supervise_thinking"] = getattr(config, "supervise_thinking", True)
            encoded = encode(rows, template, tokenizer, **options)
        encoded = dataclasses.replace(encoded, skipped=encoded.skipped + rows.skipped)
        print(f"\n{split}: {encoded.summary(config.max_length)}\n  {rows.origin}")
        print(tokens.histogram(encoded.lengths, config.max_length))
        if split == "train":
            for example in encoded.examples[:examples]:
                print("\n" + tokens.show(example, tokenizer, colour=sys.stdout.isatty()))
    if ignored := dict.fromkeys(name for rows in splits.values() for name in rows.ignored):
        print(f"\nignored columns: {', '.join(ignored)}")
