"""The server of `ft serve`: several clients, and one answer after the other."""

import errno
import ipaddress
import os
import socket
import socketserver
import sys
import threading
from http.server import ThreadingHTTPServer
from typing import Any

from ft.chat import partner
from ft.chat.openai_http import Handler
from ft.errors import UserError


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
