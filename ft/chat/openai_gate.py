"""Who may ask over HTTP and what is refused there, always in JSON: strangers, foreign pages, what is no request."""

import asyncio
import hmac
import ipaddress
import json
import traceback
from dataclasses import dataclass
from typing import Any

import h11
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from ft.chat import openai_response as response
from ft.chat.openai_request import Refused
from ft.errors import UserError

LARGEST = 2**20  # bytes of a request's body
PATIENCE = 60.0  # seconds that a client may take to send or to take bytes


@dataclass(frozen=True)
class Options:
    """How a server is to be used, and by whom."""

    max_new_tokens: int = 512  # of a request that does not say
    hosts: tuple[str, ...] = ()  # names in ``Host`` beside this machine's addresses
    origins: tuple[str, ...] = ()  # whose pages may ask; ``*`` is every page
    api_key: str = ""  # that a client must have; empty: none


class Gate:
    """Who may ask: no page of another origin, none that calls this machine by a name of its own, no stranger."""

    def __init__(self, app: ASGIApp, options: Options) -> None:
        self.app, self.options = app, options

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            if scope["type"] == "http":
                self._check(Request(scope))
        except Refused as refused:
            await refusal(refused)(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def _check(self, http: Request) -> None:
        options, host, path = self.options, http.headers.get("host", ""), http.scope["path"]
        name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
        if not (name.lower() in {"localhost", *options.hosts} or _is_address(name.strip("[]"))):
            raise Refused(
                f"the host {host[:80]!r} is not this server; --trusted-host allows it", status=403
            )
        origin, own = http.headers.get("origin"), f"{http.scope['scheme']}://{host}"
        if origin not in (None, own, *options.origins) and "*" not in options.origins:
            raise Refused(
                f"pages of {origin[:80]} may not ask; --cors {origin[:80]} allows it", status=403
            )
        sent = http.headers.get("authorization", "")
        locked = options.api_key and path.startswith("/v1") and http.method != "OPTIONS"
        if locked and not hmac.compare_digest(sent.encode(), f"Bearer {options.api_key}".encode()):
            raise Refused("the API key is missing or wrong", status=401, code="invalid_api_key")
        kind = http.headers.get("content-type", "").partition(";")[0].strip().lower()
        if http.method == "POST" and kind != "application/json":
            raise Refused(f"Content-Type is {kind[:80]!r}; send application/json", status=415)


class Protocol(H11Protocol):
    """uvicorn's, which answers in JSON too where something is not HTTP."""

    def send_400_response(self, msg: str) -> None:
        """Say so and close, unless an answer has begun."""
        if self.cycle is not None:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = refusal(Refused(msg)).body
            headers = [("content-type", "application/json"), ("connection", "close")]
            headers.append(("content-length", str(len(body))))
            for event in (
                h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
                h11.Data(data=bytes(body)),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


class Cors(CORSMiddleware):
    """Starlette's, which refuses in JSON."""

    def preflight_response(self, request_headers: Any) -> Response:
        """What a browser asks before it asks for another page."""
        found = super().preflight_response(request_headers)
        if found.status_code == 200:
            return found
        refused = refusal(Refused(bytes(found.body).decode()))
        return JSONResponse(json.loads(bytes(refused.body)), found.status_code)


async def body(http: Request) -> bytes:
    """What the client sent. Raises ``Refused`` for more than ``LARGEST`` bytes, or at too slow a pace."""
    size, parts = 0, []
    try:
        async with asyncio.timeout(PATIENCE):
            async for part in http.stream():
                size += len(part)
                if size <= LARGEST:
                    parts.append(part)
                elif size > 32 * LARGEST:
                    break  # an answer comes through only to who has sent everything
    except TimeoutError:
        raise Refused("the request's body came too slowly", status=408) from None
    if size > LARGEST:
        raise Refused(f"the body has more than the {LARGEST} bytes that are allowed", status=413)
    return b"".join(parts)


def refusal(fault: Exception, headers: Any = None) -> JSONResponse:
    """The response to a mistake."""
    status, said = told(fault)
    more = {503: {"Retry-After": "5"}, 401: {"WWW-Authenticate": "Bearer"}}.get(status, {})
    return JSONResponse(said, status, {**(headers or {}), **more})


def told(fault: Exception) -> tuple[int, dict[str, Any]]:
    """Status and JSON of a mistake; of our own faults the traceback goes to the log."""
    if isinstance(fault, RecursionError):
        fault = Refused("the request's JSON is nested too deep")
    if not isinstance(fault, UserError):
        traceback.print_exception(fault)
    return response.error(fault)


def _is_address(name: str) -> bool:
    try:
        return bool(ipaddress.ip_address(name))
    except ValueError:
        return False
