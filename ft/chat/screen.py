"""Where the questions of a chat come from and its answers go: a pipe, or a terminal with colours."""

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from ft.chat.partner import Pieces
from ft.errors import UserError

if TYPE_CHECKING:
    from ft.generate.draft import Answer

CONTROL = dict.fromkeys([*range(9), *range(11, 32), *range(127, 160)])  # but tab and line break


class Pipe:
    """Lines in, answers out, nothing else on standard output."""

    interactive = False

    def questions(self) -> Iterator[str]:
        """The lines of standard input. Raises ``UserError`` where they are not UTF-8."""
        try:
            for line in sys.stdin:
                yield line.rstrip("\n")
        except UnicodeDecodeError as error:
            raise UserError(f"standard input is not UTF-8: {error}") from None

    def note(self, text: str, *, wrong: bool = False) -> None:
        """Say something that is no answer: on standard error."""
        print(text, file=sys.stderr, flush=True)

    def answer(self, pieces: Pieces) -> "Answer":
        """Print an answer piece by piece, with a line break at its end, and return it."""
        try:
            return _each(pieces, lambda piece: print(piece, end="", flush=True))
        finally:
            print(flush=True)

    def pair(self, answers: Mapping[str, Pieces]) -> None:
        """Print answers with their names, one below the other."""
        for name, pieces in answers.items():
            print(f"{name + ':':<7}", end="")
            self.answer(pieces)


class Terminal:
    """A prompt, colours, and two columns for two answers."""

    interactive = True

    def __init__(self) -> None:
        from rich.console import Console

        self.console = Console(highlight=False)

    def questions(self) -> Iterator[str]:
        """What the user types, with readline's editing; Ctrl-C drops a line, Ctrl-D ends."""
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  # input() uses it once it is imported
        while True:
            try:
                yield input("\n> ")
            except EOFError:
                self.console.print()
                return
            except KeyboardInterrupt:
                self.note("\n/quit or Ctrl-D leaves")

    def note(self, text: str, *, wrong: bool = False) -> None:
        """Say something that is no answer: in grey, or a mistake in red."""
        self.console.print(text, style="red" if wrong else "dim", markup=False)

    def answer(self, pieces: Pieces) -> "Answer":
        """Print an answer while it is written, and return it.

        Control characters are left out: they could do anything to a terminal.
        """
        try:
            return _each(pieces, lambda piece: self.console.out(piece.translate(CONTROL), end=""))
        finally:
            self.console.print()

    def pair(self, answers: Mapping[str, Pieces]) -> None:
        """Two columns that grow."""
        from rich.live import Live
        from rich.table import Table
        from rich.text import Text

        texts = {name: Text() for name in answers}
        table = Table(expand=True)
        for name in texts:
            table.add_column(name, ratio=1)
        table.add_row(*texts.values())
        with Live(table, console=self.console, vertical_overflow="visible"):
            for name, pieces in answers.items():
                _each(pieces, lambda piece, to=texts[name]: to.append(piece.translate(CONTROL)))


def _each(pieces: Pieces, show: Callable[[str], object]) -> "Answer":
    """Show every piece, and return what the generator returns. It ends here, whatever happens."""
    with contextlib.closing(pieces):
        while True:
            try:
                show(next(pieces))
            except StopIteration as ended:
                return ended.value
