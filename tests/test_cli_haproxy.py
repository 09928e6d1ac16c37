"""HAProxy itself, started as Ray Serve starts it, before a server that says what it sees of a client."""

import asyncio
import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from serve_app.cli.haproxy import haproxy_environment

# What matters here of `ray/serve/_private/haproxy_templates.py`.
CONFIG = """
defaults
    mode http
    timeout connect 5s
    timeout client 3600s
    timeout server 3600s
    option abortonclose
    option splice-request
    option splice-response
frontend http_frontend
    bind fd@{listener}
    default_backend gateway
backend gateway
    http-reuse always
    server replica 127.0.0.1:{server_port}
"""
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 300\r\n\r\n"
BODY = b"x" * 300


class Gateway:
    """Reads one request, answers nothing, and waits for its client to leave."""

    def __init__(self) -> None:
        self.has_head, self.has_body, self.is_left = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        self.has_head.set()
        await reader.readexactly(len(BODY))
        self.has_body.set()
        # HAProxy resets the connection.
        with suppress(ConnectionResetError):
            await reader.read()
        writer.close()
        self.is_left.set()


@contextmanager
def haproxy(folder: Path, server_port: int) -> Iterator[int]:
    """Its port. What is sent before it is ready waits for it."""
    binary = haproxy_environment(folder, (1, 2, 3, 4))["RAY_SERVE_HAPROXY_BINARY_PATH"]
    config = folder / "haproxy.cfg"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config.write_text(CONFIG.format(listener=listener.fileno(), server_port=server_port))
        command = [binary, "-db", "-f", os.fspath(config)]
        with subprocess.Popen(command, pass_fds=[listener.fileno()], stderr=subprocess.DEVNULL) as process:
            try:
                yield listener.getsockname()[1]
            finally:
                process.kill()


async def test_a_client_that_leaves_before_its_answer_is_seen_to_leave(tmp_path: Path) -> None:
    gateway = Gateway()
    async with await asyncio.start_server(gateway, "127.0.0.1", 0) as server, asyncio.timeout(30):
        with haproxy(tmp_path, server.sockets[0].getsockname()[1]) as port:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            # One after the other, as HTTP clients send them.
            writer.write(HEAD)
            await gateway.has_head.wait()
            writer.write(BODY)
            await gateway.has_body.wait()

            writer.close()

            await gateway.is_left.wait()
