"""What every request passes on its way in, as plain ASGI: an answer's stream goes by untouched.

`RequestScope` (id, time, the last net for errors), then `ApiKeys`, then `BodyGuard`.
"""

import hashlib
import hmac
import json
import logging
import re
import secrets
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import NoReturn

import orjson
from starlette._utils import get_route_path
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.api.errors import to_response
from serve_app.errors import InternalError, InvalidRequest, RayconteurError, Unauthorized, UploadTooLarge

log = logging.getLogger(__name__)

ANONYMOUS = "anonymous"
"""The caller where no keys are set."""

_CLIENT_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_MAX_BODY_BYTES = 10 * 2**20
_MULTIPART_FRAMING_BYTES = 64 * 2**10
_CHECK_ON_THREAD_BYTES = 256 * 2**10
_MAX_DEPTH = 250
_UPLOADS = ("/v1/files", "/v1/conversations/import")

# What a JSON body must show before it is worth a look value by value: an escaped NUL or surrogate, NaN and the
# infinities, and whole numbers too long for 64 bits.
_SUSPICIOUS = re.compile(rb"\\u0000|\\u[dD][89a-fA-F]|NaN|Infinity|[0-9]{19}")


class RequestScope:
    """Names and times each request, and answers what nothing else has answered."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        began = time.perf_counter()
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _CLIENT_REQUEST_ID.fullmatch(given) else f"req_{secrets.token_hex(16)}"
        scope.setdefault("state", {})["request_id"] = request_id
        has_started = False

        async def send_named(message: Message) -> None:
            nonlocal has_started
            if message["type"] == "http.response.start":
                has_started = True
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                headers["openai-processing-ms"] = str(round((time.perf_counter() - began) * 1000))
            await send(message)

        try:
            await self.app(scope, receive, send_named)
        except Exception as error:
            answer = error if isinstance(error, RayconteurError) else None
            if has_started or answer is None:
                log.exception("request %s failed: %s %s", request_id, scope["method"], scope["path"])
                answer = InternalError(f"Something went wrong; the server's log has it as {request_id}")
            # With a status already sent, the server cuts the connection, and the client knows.
            if not has_started:
                await to_response(answer)(scope, receive, send_named)


class ApiKeys:
    """Every path under /v1 needs one of the keys, if there are any. The state's `caller` names it by its digest."""

    def __init__(self, app: ASGIApp, keys: Sequence[str]) -> None:
        self.app = app
        # Digests are of one length, so that comparing tells nothing about a key's.
        self._digests = [hashlib.sha256(key.encode()).digest() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            is_checked = self._digests and get_route_path(scope).startswith("/v1")
            given = Headers(scope=scope).get("authorization", "")
            scope["state"]["caller"] = self._name(given) if is_checked else ANONYMOUS
        await self.app(scope, receive, send)

    def _name(self, authorization: str) -> str:
        scheme, _, key = authorization.partition(" ")
        if scheme.lower() != "bearer" or not key:
            raise Unauthorized("This server needs an API key: send `Authorization: Bearer KEY`", code="missing_api_key")
        digest = hashlib.sha256(key.strip().encode()).digest()
        if not any(hmac.compare_digest(digest, known) for known in self._digests):
            raise Unauthorized("This API key is not known here", code="invalid_api_key")
        return f"key {digest.hex()[:8]}"


class BodyGuard:
    """Bounds what is read of a request, and refuses text that no database or answer can hold.

    An upload is counted while it streams, and its route looks at it. Every other body is read here, whole, and is JSON.
    """

    def __init__(self, app: ASGIApp, max_upload_bytes: int) -> None:
        self.app = app
        self._max_upload_bytes = max_upload_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        if "\x00" in scope["path"] or b"%00" in scope["query_string"]:
            raise InvalidRequest("The URL holds a NUL character")

        is_upload = scope["method"] == "POST" and get_route_path(scope) in _UPLOADS
        limit = self._max_upload_bytes + _MULTIPART_FRAMING_BYTES if is_upload else _MAX_BODY_BYTES
        headers = Headers(scope=scope)
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > limit:
            raise _too_large(limit)
        if not (is_upload or length not in ("", "0") or "transfer-encoding" in headers):
            return await self.app(scope, receive, send)

        receive = _counted(receive, limit)
        if not is_upload:
            body = await _read(receive)
            if body is None:
                return
            if len(body) > _CHECK_ON_THREAD_BYTES:
                await run_in_threadpool(check_json, body)
            else:
                check_json(body)
            receive = _replayed(body, receive)
        await self.app(scope, receive, send)


def check_json(body: bytes) -> None:
    """Raises `InvalidRequest` for NUL, lone surrogates, NaN, infinities, integers beyond 64 bits, and what is nested
    too deeply to be written again.

    What is not JSON at all passes: the route says so better.
    """
    try:
        body.decode()
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"The request body is not UTF-8: {error.reason} at byte {error.start}") from None
    if b"\x00" in body:
        raise InvalidRequest("The request body holds a NUL character")
    if body.count(b"[") + body.count(b"{") > _MAX_DEPTH:
        _check_depth(body)
    if not _SUSPICIOUS.search(body):
        return
    try:
        value = json.loads(body, parse_constant=_refuse_constant, parse_int=_parse_int)
    except (json.JSONDecodeError, RecursionError):
        return
    _check_value(value, ())


def _check_depth(body: bytes) -> None:
    # orjson reads 1,024 levels, and writes a quarter of them.
    with suppress(orjson.JSONDecodeError):
        value = orjson.loads(body)
        try:
            orjson.dumps(value)
        except orjson.JSONEncodeError:
            raise InvalidRequest(f"The request body is nested more than {_MAX_DEPTH} levels deep") from None


def _check_value(root: object, at: tuple[str, ...]) -> None:
    # A stack of our own: a body may be nested as deeply as the parser allows.
    remaining: list[tuple[object, tuple[str, ...]]] = [(root, at)]
    while remaining:
        value, path = remaining.pop()
        if isinstance(value, str):
            _check_text(value, path)
        elif isinstance(value, dict):
            for key, inner in value.items():
                _check_text(key, path)
                remaining.append((inner, (*path, key)))
        elif isinstance(value, list):
            remaining.extend((inner, (*path, str(index))) for index, inner in enumerate(value))


def _check_text(text: str, path: tuple[str, ...]) -> None:
    param = ".".join(path) or None
    where = "The request body" if param is None else repr(param)
    if "\x00" in text:
        raise InvalidRequest(f"{where} holds a NUL character", param=param)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidRequest(f"{where} holds half of a surrogate pair, which is no character", param=param) from None


def _refuse_constant(name: str) -> NoReturn:
    raise InvalidRequest(f"The request body holds {name}, which is not JSON")


def _parse_int(digits: str) -> int:
    # The length is looked at first, because Python refuses to read thousands of digits.
    if len(digits) > 20 or not -(2**63) <= int(digits) < 2**63:
        raise InvalidRequest(f"The request body holds {digits[:20]}…, a whole number beyond 64 bits")
    return int(digits)


def _too_large(limit: int) -> UploadTooLarge:
    return UploadTooLarge(f"The request is larger than {limit} bytes, which is the most taken here")


def _counted(receive: Receive, limit: int) -> Receive:
    seen = 0

    async def receive_counted() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen > limit:
            raise _too_large(limit)
        return message

    return receive_counted


async def _read(receive: Receive) -> bytes | None:
    """The whole body; None if the client has gone."""
    blocks = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        blocks.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(blocks)


def _replayed(body: bytes, receive: Receive) -> Receive:
    is_read = False

    async def receive_again() -> Message:
        nonlocal is_read
        if is_read:
            return await receive()
        is_read = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive_again
