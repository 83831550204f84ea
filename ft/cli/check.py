"""Validate a recipe's settings, data and output folder. Loads no model."""

import argparse
from pathlib import Path


def arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``ft check``."""
    parser.epilog = "example: ft check recipes/mtnt_lora.py --data PATH/TO/MTNT"
    parser.add_argument("recipe", type=Path, help="a recipe's file; its own flags may follow")


def command(recipe: Path, rest: list[str]) -> None:
    """Settings, data and output folder of a recipe, without torch."""
    from ft.data.rows import mixture
    from ft.runs import opened
    from ft.runs.folder import check_folder

    module, config = opened.recipe(recipe, rest)
    splits = module.rows(config)
    for split, rows in splits.items():
        skipped = f", {rows.skipped} skipped" if rows.skipped else ""
        print(f"{split:6}{len(rows):>7,} rows{skipped}  {rows.origin}")
    if ignored := dict.fromkeys(name for rows in splits.values() for name in rows.ignored):
        print(f"ignored columns: {', '.join(ignored)}")
    print("".join(f"{line}\n" for line in mixture(splits)), end="")
    resume = getattr(config, "resume_from_checkpoint", None)
    check_folder(config.output_dir, config.overwrite_output_dir, resume)
    print(f"output {config.output_dir}\nok")
