"""What commands share: an option, and the console that they write tables to, plain text outside of a terminal."""

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

WIDE = 10_000  # columns of a pipe or file: nothing is wrapped there


def base_options(parser: argparse.ArgumentParser) -> None:
    """The options of each command that puts an adapter on its base, a run's or one that was made elsewhere."""
    add = parser.add_argument
    add(
        "--any-base",
        action="store_true",
        help="take the base that is there, though its weights are not those of the run's training",
    )
    add(
        "--model",
        metavar="BASE",
        help="of an adapter made elsewhere: its base, where it names another",
    )


def adapter_options(parser: argparse.ArgumentParser, *, template: str = "") -> None:
    """``base_options``, and how an adapter that was made elsewhere is asked.

    ``template`` is said of ``--template`` where the command takes a model, too.
    """
    base_options(parser)
    alone = "of an adapter made elsewhere: chat, book, dolly, alpaca, steps, plain, a pair such as en-fr, or a YAML file"
    parser.add_argument("--template", help=template or alone)


def standard_output() -> "Console":
    """Standard output, as wide as its terminal."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else WIDE
    return Console(width=width, highlight=False, markup=False, emoji=False)


def table(where: "Console", *headings: str, right: tuple[str, ...] = ()) -> "Table":
    """An empty table; the columns of ``right`` are aligned there, as numbers are."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    made = Table(box=SIMPLE_HEAD if where.is_terminal else None, pad_edge=False)
    for heading in headings:
        made.add_column(heading, justify="right" if heading in right else "left")
    return made


def show_rows(
    where: "Console",
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    right: Sequence[str] = (),
) -> None:
    """Print a table; where the terminal is too narrow each row's first cell stands whole over the others."""
    made = table(where, *headings, right=tuple(right))
    under = table(where, *headings[1:], right=tuple(right))
    under.box = None
    for first, *others in rows:
        made.add_row(first, *others)
        under.add_row(*others)
    wide = where.measure(made, options=where.options.update(width=WIDE)).maximum
    if not where.is_terminal or wide <= where.width:
        show(where, made)
        return
    with where.capture() as text:
        where.print(under)
    names = [headings[0], *(first for first, *_ in rows)]
    for first, line in zip(names, text.get().splitlines(), strict=True):
        where.out(f"{first}\n    {line.rstrip()}", highlight=False)


def show(where: "Console", made: "Table") -> None:
    """Print a table; outside of a terminal without the spaces that fill its last column."""
    if where.is_terminal:
        where.print(made)
        return
    with where.capture() as text:
        where.print(made)
    print("\n".join(line.rstrip() for line in text.get().splitlines()))
