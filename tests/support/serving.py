"""A server of a tiny model on a real socket, and clients that are no more than HTTP."""

import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from ft.chat import partner
from ft.chat.openai_gate import Options
from ft.chat.openai_server import Server

JSON = {"Content-Type": "application/json"}


@contextlib.contextmanager
def serving(who: partner.Partner, **options: Any) -> Iterator[Server]:
    """A server that answers while this lasts."""
    server = Server("127.0.0.1", 0, Options(**{"max_new_tokens": 12, **options}))
    server.partner = who
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield server
    finally:
        server.stop()
        thread.join()


def send(server: Server, method: str, path: str, body: Any = None, **headers) -> tuple[int, bytes]:
    """Status and body of the response to one request; a body that is no bytes goes as JSON."""
    raw = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    connection = http.client.HTTPConnection(*server.address, timeout=60)
    with contextlib.closing(connection):
        connection.request(method, path, raw, JSON | headers)
        response = connection.getresponse()
        return response.status, response.read()


def post(server: Server, path: str, body: Any) -> dict[str, Any]:
    """The JSON of an answer."""
    status, answer = send(server, "POST", path, body)
    assert status == 200, answer
    return json.loads(answer)


def events(server: Server, path: str, body: dict) -> list[dict[str, Any]]:
    """The events of a stream, which ends as it should."""
    status, answer = send(server, "POST", path, body | {"stream": True})
    assert status == 200, answer
    lines = answer.decode().split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]


def raw(server: Server, *parts: bytes) -> bytes:
    """All that comes back to these bytes, until the server closes or says nothing for a while."""
    with socket.create_connection(server.address, timeout=2) as connection:
        for part in parts:
            connection.sendall(part)
        found = b""
        with contextlib.suppress(TimeoutError, ConnectionError):
            while more := connection.recv(65536):
                found += more
        return found


def until(true: Callable[[], bool]) -> None:
    """Wait for what must come."""
    ends = time.monotonic() + 60
    while not true():
        assert time.monotonic() < ends
        time.sleep(0.01)
