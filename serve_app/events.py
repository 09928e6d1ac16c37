"""What happens in a turn, in the order in which it happens; and the same again from what is stored.

The events of a response that has ended are a function of the response and of a small recording: the lengths of its
deltas, and the error that its stream had. So a stream is read again as it was, and only the text is stored.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

from serve_app.errors import RayconteurError
from serve_app.types import Json
from serve_app.types.knowledge import Passage


@dataclass(frozen=True, slots=True)
class Queued:
    """The question of a background response is committed."""

    response: Json


@dataclass(frozen=True, slots=True)
class Opened:
    """The question is committed, and somebody works on it."""

    response: Json


@dataclass(frozen=True, slots=True)
class SearchStarted:
    call: Json
    """The `file_search_call` item."""


@dataclass(frozen=True, slots=True)
class SearchCompleted:
    call: Json
    shown: tuple[Passage, ...] = ()
    """What the model will see, by their numbers in the prompt. Not known of an answer that has ended."""


@dataclass(frozen=True, slots=True)
class AnswerStarted:
    """The model has taken the prompt and begun."""

    message_id: str


@dataclass(frozen=True, slots=True)
class TextDelta:
    text: str


@dataclass(frozen=True, slots=True)
class Citation:
    annotation: Json


@dataclass(frozen=True, slots=True)
class Finished:
    """Always last. The response is committed as it is here."""

    response: Json
    error: RayconteurError | None = None
    """Why it failed, if its stream said so."""


Event = Queued | Opened | SearchStarted | SearchCompleted | AnswerStarted | TextDelta | Citation | Finished


# --- again, from what is stored -----------------------------------------------------------------

_AS_OPENED: Json = {
    "status": "in_progress",
    "completed_at": None,
    "error": None,
    "incomplete_details": None,
    "output": [],
    "usage": None,
}


def record(delta_lengths: Sequence[int], error: RayconteurError | None = None) -> Json:
    """What must be stored beside a response, so that `replay` gives the events that it came in."""
    described = error and {"message": error.message, "param": error.param, "code": error.code}
    return {"deltas": list(delta_lengths), "error": described}


def replay(response: Json, recording: Json | None) -> Iterator[Event]:
    """The events of a response that has ended. Without a recording its text is one delta."""
    opened = {**response, **{name: value for name, value in _AS_OPENED.items() if name in response}}
    if response.get("background"):
        yield Queued({**opened, "status": "queued"})
    yield Opened(opened)
    for item in response["output"]:
        if item["type"] == "file_search_call":
            yield SearchStarted({**item, "status": "in_progress", "results": None})
            if item["status"] == "completed":
                yield SearchCompleted(item)
        elif item["type"] == "message":
            part = item["content"][0]
            yield AnswerStarted(item["id"])
            yield from _deltas(part["text"], recording)
            yield from map(Citation, part["annotations"])
    error = recording and recording["error"]
    yield Finished(response, RayconteurError(**error) if error else None)


def _deltas(text: str, recording: Json | None) -> Iterator[TextDelta]:
    lengths = recording["deltas"] if recording else [len(text)] if text else []
    start = 0
    for length in lengths:
        yield TextDelta(text[start : start + length])
        start += length


# --- as JSON, for the journal of a background response ------------------------------------------


def to_json(event: Event) -> Json:
    """Of what a journal holds: all but what `replay` gives once the response has ended."""
    match event:
        case Opened(response):
            return {"type": "opened", "response": response}
        case SearchStarted(call):
            return {"type": "search_started", "call": call}
        case SearchCompleted(call, shown):
            return {"type": "search_completed", "call": call, "shown": [_passage_to_json(each) for each in shown]}
        case AnswerStarted(message_id):
            return {"type": "answer_started", "message_id": message_id}
        case TextDelta(text):
            return {"type": "text_delta", "text": text}
    raise AssertionError(f"no journal holds {event!r}")


def from_json(data: Json) -> Event:
    match data["type"]:
        case "opened":
            return Opened(data["response"])
        case "search_started":
            return SearchStarted(data["call"])
        case "search_completed":
            return SearchCompleted(data["call"], tuple(map(_passage_from_json, data["shown"])))
        case "answer_started":
            return AnswerStarted(data["message_id"])
        case "text_delta":
            return TextDelta(data["text"])
    raise AssertionError(f"no journal holds {data['type']!r}")


def _passage_to_json(passage: Passage) -> Json:
    return {name: value for name, value in asdict(passage).items() if name != "vector"}


def _passage_from_json(data: Json) -> Passage:
    pages = data["pages"] and tuple(data["pages"])
    return Passage(**{**data, "pages": pages, "heading": tuple(data["heading"])})
