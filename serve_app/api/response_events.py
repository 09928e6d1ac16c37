"""What happens in a turn, as OpenAI's server-sent events of a response."""

from collections.abc import Iterator

import orjson

from serve_app.api.errors import to_json
from serve_app.conversation.responses import INTERRUPTED
from serve_app.errors import RayconteurError
from serve_app.events import (
    AnswerStarted,
    Citation,
    Event,
    Finished,
    Opened,
    Queued,
    SearchCompleted,
    SearchStarted,
    TextDelta,
)
from serve_app.generation.answer import build_message
from serve_app.types import Json


class EventEncoder:
    """Numbers the events of one stream, and knows which output item is open."""

    def __init__(self, starting_after: int = -1) -> None:
        """Events up to the sequence number `starting_after` are numbered, and left out."""
        self._starting_after = starting_after
        self._sequence_number = 0
        self._output_index = 0
        self._message_id = ""
        self._annotations = 0

    def encode(self, event: Event) -> bytes:
        """The server-sent events for this event: one for a delta, several where an item begins or ends."""
        return b"".join(self._encode(event))

    def encode_error(self, error: RayconteurError) -> bytes:
        """For a stream that cannot be read to its end."""
        details = to_json(error)["error"]
        return self._event("error", code=details["code"], message=details["message"], param=details["param"])

    def _encode(self, event: Event) -> Iterator[bytes]:
        match event:
            case TextDelta(text):
                yield self._part_event("response.output_text.delta", delta=text, logprobs=[])
            case Queued(response):
                yield self._event("response.created", response=response)
                yield self._event("response.queued", response=response)
            case Opened(response):
                if self._sequence_number == 0:
                    yield self._event("response.created", response=response)
                yield self._event("response.in_progress", response=response)
            case SearchStarted(call):
                yield self._event("response.output_item.added", output_index=self._output_index, item=call)
                yield self._search_event("response.file_search_call.in_progress", call)
                yield self._search_event("response.file_search_call.searching", call)
            case SearchCompleted(call):
                yield self._search_event("response.file_search_call.completed", call)
                yield self._item_done(call)
            case AnswerStarted(message_id):
                self._message_id = message_id
                item = {**build_message(message_id, "in_progress", "", []), "content": []}
                part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
                yield self._event("response.output_item.added", output_index=self._output_index, item=item)
                yield self._part_event("response.content_part.added", part=part)
            case Citation(annotation):
                yield self._part_event(
                    "response.output_text.annotation.added", annotation_index=self._annotations, annotation=annotation
                )
                self._annotations += 1
            case Finished(response, error):
                if self._message_id:
                    yield from self._message_done(response["output"][self._output_index])
                if error:
                    yield self.encode_error(error)
                if response.get("incomplete_details") == INTERRUPTED:
                    # The text that its readers have seen died with its process, and with it the count.
                    self._sequence_number = max(self._sequence_number, self._starting_after + 1)
                # OpenAI has no event of its own for a response that was cancelled.
                name = "incomplete" if response["status"] == "cancelled" else response["status"]
                yield self._event(f"response.{name}", response=response)

    def _message_done(self, message: Json) -> Iterator[bytes]:
        part = message["content"][0]
        yield self._part_event("response.output_text.done", text=part["text"], logprobs=[])
        yield self._part_event("response.content_part.done", part=part)
        yield self._item_done(message)

    def _item_done(self, item: Json) -> bytes:
        event = self._event("response.output_item.done", output_index=self._output_index, item=item)
        self._output_index += 1
        return event

    def _search_event(self, event_type: str, call: Json) -> bytes:
        return self._event(event_type, output_index=self._output_index, item_id=call["id"])

    # A field's value is whatever OpenAI says it is.
    def _part_event(self, event_type: str, **fields: object) -> bytes:
        return self._event(
            event_type, item_id=self._message_id, output_index=self._output_index, content_index=0, **fields
        )

    def _event(self, event_type: str, **fields: object) -> bytes:
        number = self._sequence_number
        self._sequence_number += 1
        if number <= self._starting_after:
            return b""
        data = {"type": event_type, "sequence_number": number, **fields}
        return b"event: %s\ndata: %s\n\n" % (event_type.encode(), orjson.dumps(data))
