"""OpenAI's completion API over HTTP: several clients, and one answer after the other."""

import asyncio
import contextlib
import dataclasses
import errno
import ipaddress
import json
import socket
from collections.abc import AsyncGenerator
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from ft.chat import openai_request, openai_work
from ft.chat import openai_response as response
from ft.chat.line import Line, unless
from ft.chat.openai_gate import PATIENCE, Cors, Gate, Options, Protocol, body, refusal, told
from ft.chat.openai_request import Refused
from ft.chat.partner import Partner
from ft.errors import UserError

PAGE = Path(__file__).with_name("page.html")
# the page runs its own script and asks its own server, and nobody may frame it
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
POLICY += (
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class Completions:
    """One route: a request's JSON in, its answer or a stream of it out."""

    def __init__(self, server: "Server", *, chat: bool) -> None:
        self.server, self.chat = server, chat

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, unless the client leaves or takes nothing for too long."""
        begun = False

        async def patient(message: Message) -> None:
            nonlocal begun
            begun = True
            async with asyncio.timeout(PATIENCE):
                await send(message)

        try:
            sent = await body(Request(scope, receive))
            request = openai_request.parse(sent, chat=self.chat)
            request = self.server.check_model(request)
            with self.server.line.place():
                await unless(receive(), self._answer(request, scope, patient))
        except (ClientDisconnect, ConnectionError, TimeoutError):
            return
        except Exception as error:
            refused = refusal(error)
            if not begun:
                await refused(scope, receive, send)

    async def _answer(self, request: openai_request.Request, scope: Scope, send: Send) -> None:
        line, partner = self.server.line, self.server.partner
        prompts = await line.do(partial(openai_work.prompts, partner, request))
        most = request.max_tokens or self.server.options.max_new_tokens
        work = None
        if request.max_tokens != 0:  # what cannot be done is known before a stream begins
            work = await line.do(partial(openai_work.steps, partner, request, prompts, most))
        if request.stream:
            events = self._events(request, prompts, work)
            async with contextlib.aclosing(events):
                headers = {"Cache-Control": "no-cache"}
                streaming = StreamingResponse(events, 200, headers, "text/event-stream")
                await streaming.stream_response(send)
            return
        async with line.turn():
            answers, scored = await self._whole(request, prompts, work)
        found = response.completion(
            *(request, prompts, answers, scored, partner.tokenizer, openai_work.form(partner))
        )
        await JSONResponse(found)(scope, _nothing, send)

    async def _whole(
        self, request: openai_request.Request, prompts: list[list[int]], work: Any
    ) -> tuple[list[Any], list[Any]]:
        """All answers, and how likely they were where that is asked."""
        line = self.server.line
        answers: list[Any] = [None] * (len(prompts) * request.n)
        if work is not None:
            async with contextlib.aclosing(line.steps(work)) as steps:
                async for _, groups in steps:
                    answers = [answer for group in groups or [] for answer in group]
        scored = [await self._score(request, prompts, at, each) for at, each in enumerate(answers)]
        return answers, scored

    async def _score(
        self, request: openai_request.Request, prompts: list[list[int]], at: int, answer: Any
    ) -> Any:
        """How likely an answer was, where that is asked."""
        if request.logprobs is None:
            return None
        line, prompt = self.server.line, prompts[at // request.n]
        line.check()
        return await line.do(
            partial(openai_work.score, self.server.partner, request, prompt, answer)
        )

    async def _events(
        self, request: openai_request.Request, prompts: list[list[int]], work: Any
    ) -> AsyncGenerator[str, None]:
        """A stream's events; what goes wrong once it has begun is the last one."""
        line, partner = self.server.line, self.server.partner
        stream = response.Stream(request, openai_work.form(partner))
        try:
            async with line.turn():
                answers, last = list[Any](), dict[int, dict[str, Any]]()
                async with contextlib.aclosing(line.steps(work)) as steps:
                    async for drafts, groups in steps:
                        for chunk in stream.chunks(drafts or {}):
                            (choice,) = chunk["choices"]
                            if choice["finish_reason"] and request.logprobs is not None:
                                last[choice["index"]] = chunk
                            else:
                                yield _event(chunk)
                        answers = [answer for group in groups or [] for answer in group]
                for at, chunk in last.items():  # the model reads an answer as a whole
                    found = await self._score(request, prompts, at, answers[at])
                    likely = response.likelihoods(found, partner.tokenizer, request.chat)
                    chunk["choices"][0]["logprobs"] = likely
                    yield _event(chunk)
                if request.usage:
                    yield _event(stream.usage(prompts, answers))
            yield "data: [DONE]\n\n"
        except Exception as error:
            yield _event(told(error)[1])


class Server:
    """Listens at once, and answers with ``partner`` as soon as it has one and ``run`` is called."""

    partner: Partner

    def __init__(self, host: str, port: int, options: Options = Options()) -> None:  # noqa: B008
        self.options, self.line = options, Line()
        if not 0 <= port < 2**16:
            raise UserError(f"cannot listen at {host}, port {port}: ports go from 0 to 65535")
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            family, _, _, _, address = found[0]
            self.socket = socket.create_server((str(address[0]), port), family=family, backlog=512)
        except (OSError, UnicodeError) as error:
            taken = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
            why = "it is in use; choose another --port" if taken else str(error)
            raise UserError(f"cannot listen at {host}, port {port}: {why}") from None
        self.address: tuple[str, int] = self.socket.getsockname()[:2]
        config = uvicorn.Config(
            self.app(),
            http=Protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="critical",  # our own faults are told by `told`
            access_log=False,
            server_header=False,
        )
        self._uvicorn = _Uvicorn(config, self.line)

    def app(self) -> Starlette:
        """What answers, without a socket."""
        middleware = [Middleware(Gate, options=self.options)]
        if self.options.origins:
            allowed = {"allow_origins": self.options.origins, "allow_headers": ["*"]}
            middleware.insert(0, Middleware(Cors, **allowed, allow_methods=["GET", "POST"]))
        routes = [
            Route("/", self._page),
            Route("/v1/models", self._models),
            Route("/v1/models/{name:path}", self._model),
            Route("/v1/chat/completions", Completions(self, chat=True), methods=["POST"]),
            Route("/v1/completions", Completions(self, chat=False), methods=["POST"]),
        ]
        handlers: Any = {HTTPException: _no_route, Refused: _refused, Exception: _refused}
        found = Starlette(routes=routes, middleware=middleware, exception_handlers=handlers)
        found.router.redirect_slashes = False
        return found

    def run(self) -> None:
        """Answer until Ctrl-C or ``stop``. What is being answered then ends with an error that says so."""
        self._uvicorn.run([self.socket])

    def stop(self) -> None:
        """End ``run``, from another thread."""
        self.line.stopping = self._uvicorn.should_exit = True

    def close(self) -> None:
        """Listen no more."""
        self.socket.close()

    @property
    def is_local(self) -> bool:
        """Whether this machine alone can reach it."""
        return ipaddress.ip_address(self.address[0]).is_loopback

    @property
    def url(self) -> str:
        """Where it is."""
        host, port = self.address
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def check_model(self, request: openai_request.Request) -> openai_request.Request:
        """The request with its model's name, the first one where it has none. Raises ``Refused`` for another."""
        known = openai_work.names(self.partner)
        if request.model and request.model not in known:
            raise self._unknown(request.model)
        return request if request.model else dataclasses.replace(request, model=known[0])

    async def _page(self, _: Request) -> Response:
        headers = {"Content-Security-Policy": POLICY, "Referrer-Policy": "no-referrer"}
        return HTMLResponse(PAGE.read_text(encoding="utf-8"), headers=headers)

    async def _models(self, _: Request) -> Response:
        listed = [_listed(name) for name in openai_work.names(self.partner)]
        return JSONResponse({"object": "list", "data": listed})

    async def _model(self, http: Request) -> Response:
        name = http.path_params["name"]
        if name not in openai_work.names(self.partner):
            raise self._unknown(name)
        return JSONResponse(_listed(name))

    def _unknown(self, name: str) -> Refused:
        known = " and ".join(map(repr, openai_work.names(self.partner)))
        said = f"there is no model {name[:80]!r} here; there is {known}"
        return Refused(said, key="model", status=404, code="model_not_found")


class _Uvicorn(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, line: Line) -> None:
        super().__init__(config)
        self.line = line

    def handle_exit(self, sig: int, frame: Any) -> None:
        self.line.stopping = True
        super().handle_exit(sig, frame)


async def _nothing() -> Message:
    return {"type": "http.disconnect"}


async def _no_route(http: Request, fault: Any) -> Response:
    said = f"there is no {http.method} {http.scope['path'][:80]} here"
    return refusal(Refused(said, status=fault.status_code), fault.headers)


async def _refused(_: Request, fault: Exception) -> Response:
    return refusal(fault)


def _listed(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "ft"}


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value)}\n\n"
