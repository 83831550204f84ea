"""OpenAI's completion API over HTTP: several clients, and one answer after the other."""

import contextlib
import errno
import ipaddress
import json
import os
import re
import secrets
import select
import socket
import socketserver
import sys
import threading
import traceback
from collections.abc import Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

from ft.chat import openai_request, partner
from ft.chat import openai_response as response
from ft.chat.conversation import Conversation
from ft.chat.openai_request import Refused, Request
from ft.errors import UserError

LARGEST = 2**20  # bytes of a request's body
PATIENCE = 60.0  # seconds that a client may take to send or to take bytes
ROUTES = {"/v1/chat/completions": True, "/v1/completions": False}  # whether it is a chat


class Handler(BaseHTTPRequestHandler):
    """One client's requests. Whatever goes wrong, the client gets JSON and no traceback."""

    server: Any  # a ``Server``
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "ft", ""
    timeout = PATIENCE
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        """The model's name."""
        with self._refusals():
            path, name = urlsplit(self.path).path, self.server.partner.name
            model = {"id": name, "object": "model", "created": 0, "owned_by": "ft"}
            if path == "/v1/models":
                self._json(200, {"object": "list", "data": [model]})
            elif path.startswith("/v1/models/"):
                self._check_model(unquote(path.removeprefix("/v1/models/")))
                self._json(200, model)
            else:
                status = 405 if path in ROUTES else 404
                raise Refused(f"there is no GET {path} here", status=status)

    def do_POST(self) -> None:
        """An answer, or a stream of its pieces."""
        with self._refusals():
            body, path = self._body(), urlsplit(self.path).path
            if path not in ROUTES:
                raise Refused(f"there is no POST {path} here", status=404)
            request = openai_request.parse(body, chat=ROUTES[path])
            self._check_model(request.model)
            with self.server.turn:
                if self._is_gone():
                    raise ConnectionAbortedError
                (self._stream if request.stream else self._whole)(request)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the base class refuses, such as another method, in JSON."""
        self.close_connection = True
        self._json(*response.error(Refused(message or HTTPStatus(code).phrase, status=code)))

    def _whole(self, request: Request) -> None:
        from ft.generate import answers as generate

        answering = self.server.partner
        prompts = self._prompts(request)
        answers = generate.generate(
            answering.model,
            answering.tokenizer,
            prompts,
            template=answering.template,
            n=request.n,
            **self._options(request),
        )
        self._json(200, response.completion(request, prompts, answers, answering.tokenizer))

    def _stream(self, request: Request) -> None:
        (prompt,) = self._prompts(request)
        pieces = self.server.partner.answer(prompt, **self._options(request))
        if request.chat:
            pieces = partner.trimmed(pieces)
        head = response.head(request, streamed=True)
        self.close_connection = True  # its end is the response's
        self._begin(200, {"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
        with contextlib.closing(pieces):
            first = True
            try:
                while not self.server.stopping:
                    self._event(head | response.chunk(request, next(pieces), first=first))
                    first = False
                raise Refused("the server is stopping", status=503)
            except StopIteration as ended:
                answer = ended.value
            except (ConnectionError, TimeoutError):
                raise
            except Exception as error:  # the status is sent already
                self._event(self._told(error)[1])
                return
        self._event(head | response.chunk(request, "", response.finish_reason(answer), first=first))
        if request.usage:
            self._event(head | {"choices": [], "usage": response.usage([prompt], [answer])})
        self.wfile.write(b"data: [DONE]\n\n")

    def _prompts(self, request: Request) -> list[list[int]]:
        """The ids of each prompt. Raises ``Refused`` for one too long, or that the template cannot say."""
        answering, key = self.server.partner, "messages" if request.chat else "prompt"
        try:
            if request.chat:
                talk = Conversation(answering.template, request.messages)
                prompts = [talk.ids(answering.tokenizer)]
            else:
                prompts = [
                    answering.ids(p) if isinstance(p, str) else [*p] for p in request.prompts
                ]
        except UserError as error:
            raise Refused(str(error), key=key) from None
        longest, context = max(map(len, prompts)), answering.context
        if context and longest >= context:
            raise Refused(
                f"{key}: {longest} tokens leave no room for an answer in the context of {context}",
                key=key,
                code="context_length_exceeded",
            )
        return prompts

    def _options(self, request: Request) -> dict[str, Any]:
        return {
            "sampler": partner.sampler(request.temperature, request.top_p),
            "max_new_tokens": request.max_tokens or self.server.max_new_tokens,
            "stop": request.stop,
            "seed": secrets.randbits(63) if request.seed is None else request.seed,
        }

    def _check_model(self, name: str) -> None:
        if name != self.server.partner.name:
            raise Refused(
                f"there is no model {name[:80]!r} here; there is {self.server.partner.name!r}",
                key="model",
                status=404,
                code="model_not_found",
            )

    def _body(self) -> bytes:
        """What the client sent. Raises ``Refused`` for more than ``LARGEST`` bytes, or of unknown length."""
        length = self.headers.get("Content-Length", "")
        if not re.fullmatch("[0-9]{1,12}", length) or "Transfer-Encoding" in self.headers:
            self.close_connection = True
            raise Refused("the request needs a Content-Length", status=411)
        if int(length) > LARGEST:
            self.close_connection = True
            for _ in range(min(int(length), 32 * LARGEST) // LARGEST):
                self.rfile.read(LARGEST)  # an answer comes through only to who has sent everything
            raise Refused(f"the body has {length} bytes; {LARGEST} are allowed", status=413)
        return self.rfile.read(int(length))

    @contextlib.contextmanager
    def _refusals(self) -> Iterator[None]:
        """Answer a mistake with its status; our own faults with 500, their traceback to the log."""
        try:
            yield
        except (ConnectionError, TimeoutError):
            self.close_connection = True
        except Exception as error:
            self._json(*self._told(error))

    def _told(self, error: Exception) -> tuple[int, dict[str, Any]]:
        if not isinstance(error, UserError):
            traceback.print_exception(error)
        return response.error(error)

    def _is_gone(self) -> bool:
        """Whether the client has hung up while it waited."""
        readable, _, _ = select.select([self.connection], [], [], 0)
        return bool(readable) and not self.connection.recv(1, socket.MSG_PEEK)

    def _begin(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()

    def _json(self, status: int, value: dict[str, Any]) -> None:
        body = json.dumps(value).encode()
        length = str(len(body))
        self._begin(status, {"Content-Type": "application/json", "Content-Length": length})
        if self.command != "HEAD":
            self.wfile.write(body)

    def _event(self, value: dict[str, Any]) -> None:
        self.wfile.write(f"data: {json.dumps(value)}\n\n".encode())


class Server(ThreadingHTTPServer):
    """Answers several clients, one answer after the other: the model works for one at a time."""

    daemon_threads = True
    partner: partner.Partner

    def __init__(self, host: str, port: int, max_new_tokens: int) -> None:
        self.max_new_tokens = max_new_tokens
        self.turn = threading.Lock()
        self.stopping = False
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            self.address_family, _, _, _, address = found[0]
            super().__init__((str(address[0]), port), Handler)
        except (OSError, OverflowError, UnicodeError) as error:
            taken = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
            why = "it is in use; choose another --port" if taken else str(error)
            raise UserError(f"cannot listen at {host}, port {port}: {why}") from None

    @property
    def is_local(self) -> bool:
        """Whether this machine alone can reach it."""
        return ipaddress.ip_address(str(self.server_address[0])).is_loopback

    @property
    def url(self) -> str:
        """Where it is."""
        host, port = self.server_address[:2]
        return f"http://[{host}]:{port}" if ":" in str(host) else f"http://{host}:{port}"

    def stop(self) -> None:
        """Close, and wait for the answer in progress; a second Ctrl-C does not."""
        self.stopping = True
        self.server_close()
        try:
            self.turn.acquire()
        except KeyboardInterrupt:  # the model's thread would not let Python end
            sys.stdout.flush()
            os._exit(130)

    def server_bind(self) -> None:
        """Without ``HTTPServer``'s look-up of this machine's name, which can take seconds."""
        socketserver.TCPServer.server_bind(self)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing to say of a client that went away."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)
