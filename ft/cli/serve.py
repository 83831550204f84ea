"""Serve a run over HTTP, as OpenAI's clients expect it."""

import argparse

from ft.chat import partner
from ft.cli import console
from ft.errors import UserError


def arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``ft serve``."""
    parser.epilog = "example: ft serve runs/mtnt_lora --port 8000"
    add = parser.add_argument
    add("name", metavar="RUN", help="a run, or a model: a folder, Hub id, or `embedded`")
    add(
        "--host", default="127.0.0.1", help="address to listen at (default 127.0.0.1, this machine)"
    )
    add("--port", type=int, default=8000, help="0 takes a free one (default 8000)")
    add(
        "--max-new-tokens",
        type=int,
        default=512,
        help="of a request without max_tokens (default 512)",
    )
    add("--precision", default="auto", help="auto, fp32, bf16 or nf4 (default auto)")
    add("--template", help="of a model: chat, book, dolly, alpaca, plain, or a YAML file")
    console.any_base_option(parser)


def command(
    name: str,
    host: str,
    port: int,
    max_new_tokens: int,
    precision: str,
    template: str | None,
    any_base: bool = False,
) -> None:
    """Listen, load, and answer until Ctrl-C."""
    from ft.chat.openai_server import Server

    if max_new_tokens < 1:
        raise UserError(f"--max-new-tokens {max_new_tokens}: an answer needs 1 token at least")
    # a port in use is known before a model is loaded
    with Server(host, port, max_new_tokens) as server:
        server.partner = partner.load(
            name, precision=precision, template=template, any_base=any_base
        )
        if server.partner.note:
            print(server.partner.note)
        print(f"{server.partner.name} at {server.url}/v1  (Ctrl-C stops)", flush=True)
        if not server.is_local:
            print(f"{host} is open to others than this machine, and has no password", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print("\nstopping after the answer in progress; Ctrl-C again stops at once", flush=True)
            server.stop()
