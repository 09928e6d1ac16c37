"""An answer as far as it has come, and the response object that it makes at any moment."""

from collections.abc import Callable, Sequence
from typing import Literal

from serve_app.errors import InternalError, InvalidRequest, Overloaded, RayconteurError
from serve_app.generation.citations import CitedText
from serve_app.types import Json, new_id, now_s
from serve_app.types.knowledge import Passage


class Answer:
    """Made of the model's chunks, in order; belongs to one `reply`."""

    def __init__(self, response: Json) -> None:
        self.text = ""
        self.delta_lengths: list[int] = []
        """Of the pieces that make up the text."""
        self.raw_text = ""
        """What the model wrote: the text with the numbers of its sources."""
        self.message_id = new_id("msg")
        self.is_opened = False
        """Who reads the events knows of it."""
        self.has_started = False
        """The model has begun to answer."""
        self.shown: tuple[Passage, ...] | None = None
        """What was found and put before the model; None if nothing has been searched."""
        self.carried_tokens = 0
        """Of the text so far, when the model was last asked to go on with it."""
        self._seam = ""
        self.question_texts: dict[str, str] = {}
        """What the model read in place of the question, by its item's id."""
        self._response = response
        self._call: Json | None = None
        self._cited: CitedText | None = None
        self._finish_reason: str | None = None
        self._usage: Json | None = None

    @property
    def has_ended(self) -> bool:
        """The model has said its last word."""
        return self._finish_reason is not None

    @property
    def annotations(self) -> list[Json]:
        return self._cited.annotations if self._cited else []

    @property
    def prompt_texts(self) -> dict[str, str]:
        """What later prompts hold in place of the question and of the answer, by item id: see `types.PastItem`."""
        own = {self.message_id: self.raw_text} if self.raw_text != self.text else {}
        return {**self.question_texts, **own}

    def open(self) -> Json:
        """The response as it is before there is an answer."""
        self.is_opened = True
        return self._response

    def start_search(self, queries: Sequence[str]) -> Json:
        self._call = {
            "type": "file_search_call",
            "id": new_id("fs"),
            "status": "in_progress",
            "queries": list(queries),
            "results": None,
        }
        return self._call

    def complete_search(
        self, passages: Sequence[Passage], shown: tuple[Passage, ...], *, with_results: bool, cites: bool
    ) -> Json:
        """`shown` are those that the model sees; with `cites`, the numbers that it writes are theirs."""
        results = [
            {
                "file_id": passage.file_id,
                "filename": passage.filename,
                "score": passage.score,
                "text": passage.text,
                "attributes": passage.attributes,
                "vector_store_id": passage.store_id,
                "place": passage.place_to_json(),
            }
            for passage in passages
        ]
        call = {**(self._call or {}), "status": "completed", "results": results if with_results else None}
        self.restore_search(call, shown, cites=cites)
        return call

    def restore_search(self, call: Json, shown: tuple[Passage, ...], *, cites: bool) -> None:
        """As it was when somebody else had searched."""
        self._call, self.shown = call, shown
        self._cited = CitedText(shown) if cites else None

    def start(self) -> str:
        """The model has begun. Returns the message's id."""
        self.has_started = True
        return self.message_id

    def restore_text(self, message_id: str, raw_text: str, deltas: Sequence[str]) -> None:
        """As it was when somebody else had it written. Raises `InternalError` if it cannot be made that again."""
        self.message_id, self.raw_text, self.has_started = message_id, raw_text, True
        self.text = "".join(deltas)
        self.delta_lengths = [len(delta) for delta in deltas]
        if self.text != (self._cited.feed(raw_text) if self._cited else raw_text):
            raise InternalError("the answer so far is not what its readers have seen")

    def expect_rest(self, count_tokens: Callable[[str], int]) -> str:
        """The raw text without the white space at its end; if the model goes on from there, that is not added twice."""
        text = self.raw_text.rstrip()
        self._seam = self.raw_text[len(text) :]
        self.carried_tokens = count_tokens(text) if text else 0
        return text

    def cut(self) -> None:
        """It is as long as it may be."""
        self._finish_reason = "length"

    def add(self, chunk: Json) -> str:
        """The text that a chunk adds to the answer; often none."""
        if usage := chunk.get("usage"):
            self._usage = build_usage(usage, self.carried_tokens)
        for choice in chunk["choices"]:
            if choice["index"]:  # of a beam search the best is the first
                continue
            self._finish_reason = choice.get("finish_reason") or self._finish_reason
            # A model may write NUL, which PostgreSQL cannot store.
            if delta := (choice["delta"].get("content") or "").replace("\x00", ""):
                if self._seam and not (delta := self._drop_seam(delta)):
                    return ""
                self.raw_text += delta
                return self._append(self._cited.feed(delta) if self._cited else delta)
        return ""

    def _drop_seam(self, delta: str) -> str:
        """Without the white space at its beginning that is there already."""
        while delta and self._seam and delta[0] == self._seam[0]:
            delta, self._seam = delta[1:], self._seam[1:]
        if delta:
            self._seam = ""
        return delta

    def end(self) -> str:
        """The last text. Raises `InternalError` if the model stopped without having finished."""
        if self._finish_reason in (None, "abort", "error"):
            raise InternalError("the model stopped before its answer was finished: try again")
        return self._append(self._cited.finish()) if self._cited else ""

    def finished(self) -> Json:
        if self._finish_reason == "length":
            return self.incomplete("max_output_tokens")
        return {**self._response, **self._outcome("completed"), "completed_at": now_s()}

    def incomplete(self, reason: str) -> Json:
        return {**self._response, **self._outcome("incomplete"), "incomplete_details": {"reason": reason}}

    def cancelled(self) -> Json:
        return {**self._response, **self._outcome("cancelled")}

    def failed(self, error: RayconteurError) -> Json:
        details = {"code": _error_code(error), "message": error.message}
        return {**self._response, **self._outcome("failed"), "error": details}

    def _append(self, text: str) -> str:
        if text:
            self.text += text
            self.delta_lengths.append(len(text))
        return text

    def _outcome(self, status: Literal["completed", "incomplete", "cancelled", "failed"]) -> Json:
        output = []
        if self._call:
            is_done = self._call["status"] == "completed"
            output.append(self._call if is_done else {**self._call, "status": "incomplete"})
        if self.has_started:
            message_status: Literal["completed", "incomplete"] = "completed" if status == "completed" else "incomplete"
            output.append(build_message(self.message_id, message_status, self.text, self.annotations))
        return {"status": status, "output": output, "usage": self._usage}


def build_message(
    message_id: str, status: Literal["in_progress", "completed", "incomplete"], text: str, annotations: list[Json]
) -> Json:
    """An assistant's message item."""
    part = {"type": "output_text", "text": text, "annotations": annotations, "logprobs": []}
    return {"type": "message", "id": message_id, "status": status, "role": "assistant", "content": [part]}


def build_usage(usage: Json, carried_tokens: int = 0) -> Json:
    """OpenAI's usage of a response, for vLLM's of a chat completion.

    The last `carried_tokens` of its prompt are of the answer: another replica had written them.
    """
    read = usage.get("prompt_tokens_details") or {}
    written = usage.get("completion_tokens_details") or {}
    return {
        "input_tokens": usage["prompt_tokens"] - carried_tokens,
        "input_tokens_details": {"cached_tokens": read.get("cached_tokens") or 0, "cache_write_tokens": 0},
        "output_tokens": usage["completion_tokens"] + carried_tokens,
        "output_tokens_details": {"reasoning_tokens": written.get("reasoning_tokens") or 0},
        "total_tokens": usage["total_tokens"],
    }


# The codes are OpenAI's closed set.
def _error_code(error: RayconteurError) -> str:
    if isinstance(error, Overloaded):
        return "rate_limit_exceeded"
    if isinstance(error, InvalidRequest):
        return "invalid_prompt"
    return "server_error"
