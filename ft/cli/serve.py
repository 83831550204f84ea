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
    add("--served-model-name", help="the name that clients ask for (default the run's)")
    add("--api-key", default="", help="that clients must send (default none)")
    add(
        "--cors",
        metavar="ORIGIN",
        action="append",
        default=[],
        help="pages of this origin may ask, as http://localhost:3000; repeatable; * is every page",
    )
    add(
        "--trusted-host",
        metavar="NAME",
        action="append",
        default=[],
        help="a name of this machine that clients call it by, beside localhost; repeatable",
    )
    add("--precision", default="auto", help="auto, fp32, bf16 or nf4 (default auto)")
    asked = (
        "of a model or an adapter made elsewhere: chat, book, dolly, alpaca, plain, or a YAML file"
    )
    console.adapter_options(parser, template=asked)


def command(
    name: str,
    host: str,
    port: int,
    max_new_tokens: int,
    served_model_name: str | None,
    api_key: str,
    cors: list[str],
    trusted_host: list[str],
    precision: str,
    template: str | None,
    any_base: bool = False,
    model: str | None = None,
) -> None:
    """Listen, load, and answer until Ctrl-C."""
    try:
        from ft.chat.openai_server import Options, Server
    except ModuleNotFoundError as error:
        raise UserError(
            f'`ft serve` needs the package {error.name}: pip install "gemma-ft[serve]"'
        ) from None

    if max_new_tokens < 1:
        raise UserError(f"--max-new-tokens {max_new_tokens}: an answer needs 1 token at least")
    for origin in cors:
        if origin != "*" and ("://" not in origin or origin.endswith("/")):
            raise UserError(f"--cors {origin}: an origin is as http://localhost:3000, or *")
    hosts = (host.lower(), *(trusted.lower() for trusted in trusted_host))
    options = Options(max_new_tokens, hosts, tuple(cors), api_key)
    server = Server(host, port, options)  # a port in use is known before a model is loaded
    try:
        server.partner = partner.load(
            name, precision=precision, template=template, any_base=any_base, model=model
        )
        server.partner.name = served_model_name or server.partner.name
        if server.partner.note:
            print(server.partner.note)
        print(f"{server.partner.name} at {server.url}/v1  (Ctrl-C stops)", flush=True)
        print(f"a page to try it: {server.url}/", flush=True)
        if not server.is_local and not api_key:
            print(f"{host} is open to others than this machine, and has no --api-key", flush=True)
        server.run()
    except KeyboardInterrupt:
        print("\nstopped", flush=True)
    finally:
        server.close()
