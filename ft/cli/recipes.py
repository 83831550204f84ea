"""List the recipes that come along, or copy one here to change it."""

import argparse
import shutil
from pathlib import Path

from ft.errors import UserError, nearest


def arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``ft recipes``."""
    parser.epilog = "example: ft recipes copy mtnt_lora"
    parser.add_argument("what", nargs="?", choices=["copy"], help="copy one into this folder")
    parser.add_argument("recipe", nargs="?", help="its name; `ft run` then takes the copy's file")


def command(what: str | None, recipe: str | None) -> None:
    """Print a line a recipe, or write the one that is named."""
    from ft import files

    known = files.recipes()
    if what is None:
        width = max(map(len, known)) + 2
        print("\n".join(name.ljust(width) + line for name, line in known.items()))
        return
    if recipe not in known:
        raise UserError(
            f"ft recipes copy needs the name of a recipe, not {recipe!r}; there are "
            f"{', '.join(known)}.{nearest(recipe or '', known)}"
        )
    here = Path(f"{recipe}.py")
    if here.exists():
        raise UserError(f"{here} is here already: move it away first")
    shutil.copyfile(files.bundled() / "recipes" / here, here)
    print(f"{here}: change it, then `ft run {here}`")
