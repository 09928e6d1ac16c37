"""An ASGI app behind a real server: on a thread of the test's own process, or in a process that a test may kill."""

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp

_START_TIMEOUT_S = 30


@contextmanager
def serve(app: ASGIApp) -> Iterator[str]:
    """Yields the base URL, e.g. `http://127.0.0.1:51234`. At the end open requests are finished, then the thread is."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = _Server(uvicorn.Config(app, log_level="warning", ws="none"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="test-server")
        thread.start()
        try:
            assert server.has_started.wait(_START_TIMEOUT_S), "the server did not start"
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@contextmanager
def running(module: str, *arguments: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """The process of `python -m module *arguments SOCKET`, and its base URL. At the end it is killed.

    SOCKET is the number of a socket that listens already: what is asked before the program is ready waits for it.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        command = [sys.executable, "-m", module, *arguments, str(listener.fileno())]
        process = subprocess.Popen(command, pass_fds=[listener.fileno()])
    with process:
        try:
            yield process, url
        finally:
            process.kill()


def run(app: ASGIApp, descriptor: int) -> None:
    """Serve on a socket of this number, which another process has passed on."""
    uvicorn.Server(uvicorn.Config(app, log_level="warning")).run([socket.socket(fileno=descriptor)])


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.has_started = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.has_started.set()
