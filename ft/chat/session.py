"""The talk at a pipe or a terminal: questions in, answers as they are written, history and a few commands."""

import contextlib
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ft.chat import partner
from ft.chat.conversation import Conversation
from ft.chat.partner import Pieces
from ft.data import images
from ft.errors import UserError, nearest

if TYPE_CHECKING:
    from ft.generate.draft import Answer

COMMANDS = """\
/reset             forget the conversation, but not the system message
/system [TEXT]     set the system message; without a text, remove it
/temperature [T]   0 is the most likely answer, 1 draws by the model's
                   probabilities; without T, show it
/base [QUESTION]   ask the base and the tuned model the same, side by side;
                   without one, the last question. It does not become part of
                   the conversation
/image FILE        show a picture with the next question (start with --image
                   for the first one)
/help              this list
/quit              leave, as the end of input does
Ctrl-C stops an answer. A line that begins with a space is a question even if
a / follows."""

IMPATIENT = 1.0  # seconds between two Ctrl-C that end the program
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


class Chat:
    """The conversation so far, and what its commands change."""

    def __init__(
        self,
        found: partner.Partner,
        screen: Pipe | Terminal,
        system: str = "",
        temperature: float = 0.0,
        top_p: float = 1.0,
        max_new_tokens: int = 512,
        seed: int = 0,
        show_thinking: bool = False,
    ) -> None:
        self.show_thinking = show_thinking
        self.partner, self.screen, self.top_p = found, screen, top_p
        self.temperature, self.max_new_tokens, self.seed = temperature, max_new_tokens, seed
        self.talk = Conversation(found.template, see=found.see).instructed(system)
        self.shown: list[Any] = []  # images that the next question is about
        self.last: Conversation | None = None  # up to the last question
        self._stopped = -IMPATIENT  # when Ctrl-C last stopped an answer
        self.commands: dict[str, Callable[[str], None]] = {
            "/reset": self.reset,
            "/system": self.system,
            "/temperature": self.set_temperature,
            "/base": self.base,
            "/image": self.show,
            "/help": lambda _: self.screen.note(COMMANDS),
        }

    def run(self) -> None:
        """Answer until the input ends, or ``/quit``.

        A mistake is told on a terminal; where nobody can mend it, it raises ``UserError``.
        """
        for line in self.screen.questions():
            name, _, text = line.partition(" ")
            is_command = re.fullmatch(r"/\w*", name)
            if name == "/quit":
                return
            try:
                if is_command:
                    self.obey(name, text.strip())
                elif line.strip():
                    self.ask(line.strip())
            except UserError as error:
                if not self.screen.interactive:
                    raise
                self.screen.note(str(error), wrong=True)

    def obey(self, name: str, text: str) -> None:
        """Carry out one command. Raises ``UserError`` for one that there is not."""
        if name not in self.commands:
            known = [*self.commands, "/quit"]
            raise UserError(
                f"there is no command {name}; there are {', '.join(known)}.{nearest(name, known)}"
            )
        self.commands[name](text)

    def ask(self, question: str) -> None:
        """Answer a question, and remember both."""
        asked = self._fitted(question)
        pieces = self._pieces(asked)
        with self._stoppable("stopped: this question and its answer are forgotten"):
            answer = self.screen.answer(pieces)
            self.last, self.shown = asked, []
            if self.show_thinking and answer.thought:
                self.screen.note(f"thought: {answer.thought}")
            if answer.reason == "length":
                self.screen.note(
                    f"cut after {len(answer.ids)} tokens (--max-new-tokens, or the end of the context)"
                )
            if not answer.text.strip():
                self.screen.note("the answer is empty: the question is forgotten")
            elif asked.remembers:
                self.talk = asked.answered(answer.text.strip())

    def reset(self, text: str) -> None:
        """Forget all but the system message."""
        if text:
            raise UserError("/reset takes no text; begin a question with a space if it has a /")
        self.talk, self.last = self.talk.reset(), None
        self.screen.note("the conversation begins anew")

    def system(self, text: str) -> None:
        """Another system message, or none."""
        self.talk = self.talk.instructed(text)
        self.screen.note("system message set" if text else "no system message")

    def set_temperature(self, text: str) -> None:
        """Another temperature; without one, show it."""
        if text:
            try:
                value = float(text)
            except ValueError:
                raise UserError(f"/temperature {text}: expected a number such as 0.7") from None
            partner.sampler(value, self.top_p)
            self.temperature = value
        self.screen.note(f"temperature {self.temperature:g}" + " (greedy)" * (not self.temperature))

    def show(self, text: str) -> None:
        """One more image for the next question."""
        if self.partner.see is None:
            raise UserError(
                f"/image: {self.partner.name} was loaded without its image tower; start `ft chat` with --image"
            )
        if not text:
            raise UserError("/image: name a file, as in /image photo.png")
        self.shown.append(images.open_image(text))
        self.screen.note(f"the next question is about {text}")

    def base(self, text: str) -> None:
        """A question, or the last one, to base and tuned model."""
        asked = self._fitted(text) if text else self.last
        if asked is None:
            raise UserError("/base: nothing has been asked yet; write /base and a question")
        with self._stoppable("stopped"):
            self.screen.pair(
                {
                    "base": self._pieces(asked, tuned=False),
                    "tuned": self._pieces(asked),
                }
            )

    def _pieces(self, asked: Conversation, *, tuned: bool = True) -> Pieces:
        drawn = partner.sampler(self.temperature, self.top_p)
        sampler = drawn if self.temperature else self.partner.likeliest
        pieces = self.partner.answer(
            asked.ids(self.partner.tokenizer),
            sampler,
            max_new_tokens=self.max_new_tokens,
            seed=self.seed,
            tuned=tuned,
        )
        return partner.trimmed(pieces)

    def _fitted(self, question: str) -> Conversation:
        """The conversation with a question, and room for an answer: for that the oldest exchanges go."""
        context = self.partner.context
        room = min(self.max_new_tokens, context // 2) if context else 0
        most = context - room if context else None
        asked, dropped = self.talk.asked(question, self.shown).fitted(self.partner.tokenizer, most)
        if dropped:
            self.screen.note(
                f"the conversation is longer than the context of {context:,} tokens less "
                f"{room:,} for an answer: forgot its oldest {dropped} "
                f"exchange{'s' * (dropped > 1)}"
            )
        return asked

    @contextlib.contextmanager
    def _stoppable(self, said: str) -> Iterator[None]:
        """Let Ctrl-C stop what goes on here; twice within a second, and it ends the program."""
        try:
            yield
        except KeyboardInterrupt:
            if time.monotonic() - self._stopped < IMPATIENT:
                raise
            self._stopped = time.monotonic()
            self.screen.note(said)


def _each(pieces: Pieces, show: Callable[[str], object]) -> "Answer":
    """Show every piece, and return what the generator returns. It ends here, whatever happens."""
    with contextlib.closing(pieces):
        while True:
            try:
                show(next(pieces))
            except StopIteration as ended:
                return ended.value
