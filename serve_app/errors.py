"""What can go wrong, for whoever can act on it. Each leaf carries its HTTP status and OpenAI's error type.

RayconteurError
├── InvalidRequest      400  the request is wrong; `param` names the field
│   ├── UploadTooLarge  413  the upload is over `api.max_upload_bytes`
│   └── UnsupportedFile 415  the file's type is not read here, or its content is not of the type it claims
├── Unauthorized        401  a key is needed and none, or a wrong one, came
├── NotFound            404  no such model, store, file, conversation, item or response
├── Conflict            409  the thing changed meanwhile, or the same request is still being worked on
├── Overloaded          429  no room now; `retry_after_s` says when to come back
├── Unavailable         503  a part is down or still loading; `retry_after_s` says when to come back
├── Timeout             504  a part did not answer within its deadline
└── InternalError       500  our fault
"""

from typing import Any


class RayconteurError(Exception):
    """The root. `message` is for the user: what was wrong, with the value, and what to do."""

    status: int = 500
    type: str = "server_error"

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code
        self.retry_after_s = retry_after_s

    def __reduce__(self) -> tuple[Any, ...]:
        # Keyword-only arguments are lost by the default pickling, and these cross processes.
        return _rebuild, (type(self), self.message, self.param, self.code, self.retry_after_s)


def _rebuild(
    leaf: type[RayconteurError],
    message: str,
    param: str | None,
    code: str | None,
    retry_after_s: float | None,
) -> RayconteurError:
    return leaf(message, param=param, code=code, retry_after_s=retry_after_s)


class InvalidRequest(RayconteurError):
    status = 400
    type = "invalid_request_error"


class UploadTooLarge(InvalidRequest):
    status = 413


class UnsupportedFile(InvalidRequest):
    status = 415


class Unauthorized(RayconteurError):
    status = 401
    type = "authentication_error"


class NotFound(RayconteurError):
    status = 404
    type = "invalid_request_error"


class Conflict(RayconteurError):
    status = 409
    type = "conflict_error"


class Overloaded(RayconteurError):
    status = 429
    type = "rate_limit_error"


class Unavailable(RayconteurError):
    status = 503
    type = "service_unavailable_error"


class Timeout(RayconteurError):
    status = 504
    type = "timeout_error"


class InternalError(RayconteurError):
    status = 500
