"""Every error as OpenAI's `{"error": {message, type, param, code}}`, from whatever was raised."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from serve_app.errors import InvalidRequest, RayconteurError
from serve_app.types import Json

_DEFAULT_RETRY_AFTER_S = 1.0


def add_error_handlers(app: FastAPI) -> None:
    """All but the unexpected, which `middleware.RequestScope` answers: it also sees what other middleware raises."""
    app.add_exception_handler(RayconteurError, _answer_ours)
    app.add_exception_handler(RequestValidationError, _answer_invalid)
    app.add_exception_handler(HTTPException, _answer_http)


def to_json(error: RayconteurError) -> Json:
    return _body(error.message, error.type, error.param, error.code)


def to_response(error: RayconteurError, beside: Mapping[str, Any] | None = None) -> Response:
    """`beside` are fields that the body has next to `error`."""
    headers = {}
    if error.status in (429, 503):
        seconds = error.retry_after_s or _DEFAULT_RETRY_AFTER_S
        headers = {"retry-after-ms": str(math.ceil(seconds * 1000)), "retry-after": str(math.ceil(seconds))}
    elif error.status == 401:
        headers = {"www-authenticate": "Bearer"}
    return JSONResponse({**to_json(error), **(beside or {})}, error.status, headers)


def invalid_request(errors: Sequence[Mapping[str, Any]], body: object) -> InvalidRequest:
    """One message out of pydantic's errors for `body`, about the first field that is wrong.

    Where a value may be of several types there is an error for each: the deepest is of the type that was meant.
    """
    paths = [(_path(error, body), error) for error in errors]
    path = max((path for path, _ in paths if path[:1] == paths[0][0][:1]), key=len)
    problems = dict.fromkeys(_problem(error) for its_path, error in paths if its_path == path)
    param = ".".join(str(step) for step in path) or None
    subject = "The request body" if param is None else repr(param)
    return InvalidRequest(f"{subject} {' or '.join(problems)}", param=param)


# Starlette types a handler's second argument as Exception, and sends one that is not a coroutine to a thread.
async def _answer_ours(request: Request, error: Exception) -> Response:
    assert isinstance(error, RayconteurError)
    return to_response(error)


async def _answer_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    errors = error.errors()
    if errors[0]["type"] == "json_invalid":
        position, reason = errors[0]["loc"][-1], errors[0]["ctx"]["error"]
        return to_response(InvalidRequest(f"The request body is not JSON: {reason} at character {position}"))
    # A location begins with where the value was: body, query, path, header.
    source: object = error.body
    if errors[0]["loc"][0] == "query":
        source = dict(request.query_params)
    elif errors[0]["loc"][0] == "header":
        source = dict(request.headers)
    elif errors[0]["loc"][0] == "path":
        source = request.path_params
    return to_response(invalid_request([{**each, "loc": each["loc"][1:]} for each in errors], source))


async def _answer_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message, code = str(error.detail), None
    if error.status_code == 404:
        message, code = f"There is nothing at {request.method} {request.url.path}", "unknown_url"
    elif error.status_code == 405:
        message, code = f"{request.url.path} does not take {request.method}", "method_not_allowed"
    elif error.status_code == 400:
        message = "The request body cannot be read: it must be JSON in UTF-8"
    error_type = "invalid_request_error" if error.status_code < 500 else "server_error"
    return JSONResponse(_body(message, error_type, None, code), error.status_code, error.headers)


def _body(message: str, error_type: str, param: str | None, code: str | None) -> Json:
    return {"error": {"message": message, "type": error_type, "param": param, "code": code}}


def _path(error: Mapping[str, Any], body: object) -> tuple[str | int, ...]:
    """The steps of an error's location that are in the value: pydantic puts names of types between them."""
    # A JSON value of any shape, walked into.
    here: Any = body
    path: list[str | int] = []
    steps = error["loc"]
    for index, step in enumerate(steps):
        is_missing = error["type"] == "missing" and index == len(steps) - 1
        if isinstance(here, Mapping):
            is_inside = step in here
        else:
            is_inside = isinstance(here, list) and isinstance(step, int) and step < len(here)
        if is_inside:
            here = here[step]
        if is_inside or is_missing:
            path.append(step)
    return tuple(path)


_PROBLEMS = {
    "missing": "is required",
    "string_type": "must be a string",
    "int_type": "must be an integer",
    "int_parsing": "must be an integer",
    "int_parsing_size": "is too large a number",
    "int_from_float": "must be an integer",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "list_type": "must be a list",
    "dict_type": "must be an object",
    "model_type": "must be an object",
    "model_attributes_type": "must be an object",
    "none_required": "must be null",
    "literal_error": "must be {expected}",
    "union_tag_invalid": "has the type {tag!r}; it must be one of {expected_tags}",
    "union_tag_not_found": "needs a `type`",
    "string_too_long": "must have at most {max_length} characters",
    "string_too_short": "must have at least {min_length} characters",
    "too_long": "must have at most {max_length} entries",
    "too_short": "must have at least {min_length} entries",
    "string_pattern_mismatch": "holds characters that are not allowed",
    "greater_than_equal": "must be at least {ge}",
    "greater_than": "must be above {gt}",
    "less_than_equal": "must be at most {le}",
    "less_than": "must be below {lt}",
    "recursion_loop": "is nested too deeply",
}


def _problem(error: Mapping[str, Any]) -> str:
    if error["type"] == "value_error":
        return f"is wrong: {error['ctx']['error']}"
    template = _PROBLEMS.get(error["type"])
    return "is wrong: " + error["msg"] if template is None else template.format(**error.get("ctx", {}))
