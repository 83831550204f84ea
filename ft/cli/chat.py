"""Talk with a run or a model."""

import argparse
import sys
from collections.abc import Sequence

from ft.chat import partner
from ft.chat.session import Chat, Pipe, Terminal
from ft.cli import console
from ft.data import images
from ft.errors import UserError


def arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``ft chat``."""
    parser.epilog = "example: ft chat runs/mtnt_lora"
    add = parser.add_argument
    add("name", metavar="RUN|MODEL", help="a run, or a model: a folder, Hub id, or `embedded`")
    add("--system", default="", help="system message (default none)")
    add("--temperature", type=float, default=0.0, help="0 is the most likely answer (default 0)")
    add("--top-p", type=float, default=1.0, help="share of probability to draw from (default 1)")
    add("--max-new-tokens", type=int, default=512, help="longest answer (default 512)")
    add("--seed", type=int, default=0, help="of what is drawn (default 0)")
    add("--precision", default="auto", help="auto, fp32, bf16 or nf4 (default auto)")
    asked = (
        "of a model or an adapter made elsewhere: chat, book, dolly, alpaca, plain, or a YAML file"
    )
    console.adapter_options(parser, template=asked)
    add(
        "--show-thinking",
        action="store_true",
        help="say after an answer what was thought before it",
    )
    add("--image", action="append", default=[], help="show it with the first question; repeatable")


def command(
    name: str,
    system: str,
    temperature: float,
    top_p: float,
    max_new_tokens: int,
    seed: int,
    precision: str,
    template: str | None,
    show_thinking: bool = False,
    image: Sequence[str] = (),
    any_base: bool = False,
    model: str | None = None,
) -> None:
    """Load, and answer until the input ends."""
    shown = [images.open_image(path) for path in image]
    partner.sampler(temperature, top_p)  # a fault in an option, before a model is loaded
    if max_new_tokens < 1:
        raise UserError(f"--max-new-tokens {max_new_tokens}: an answer needs 1 token at least")
    screen = Terminal() if sys.stdin.isatty() and sys.stdout.isatty() else Pipe()
    asked = {"precision": precision, "template": template, "any_base": any_base, "model": model}
    found = partner.load(name, **asked, images=bool(shown))
    chat = Chat(found, screen, system, temperature, top_p, max_new_tokens, seed, show_thinking)
    chat.shown = shown
    if screen.interactive:
        screen.note(f"{found.name}, template {found.template.name!r}. /help lists the commands.")
    if found.note:
        screen.note(found.note)
    if not chat.talk.remembers:
        screen.note(f"template {found.template.name!r}: each question stands alone")
    chat.run()
