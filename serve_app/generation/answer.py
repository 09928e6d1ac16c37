"""An answer as far as it has come, and the response object that it makes at any moment."""

from collections.abc import Sequence
from typing import Literal

from serve_app.errors import InternalError, InvalidRequest, Overloaded, RayconteurError
from serve_app.generation.citations import CitedText
from serve_app.types import Json, Passage, new_id, now_s


class Answer:
    """Made of the model's chunks, in order; belongs to one `reply`."""

    def __init__(self, response: Json) -> None:
        self.text = ""
        self.message_id = new_id("msg")
        self.has_started = False
        """The model has begun to answer."""
        self.written = ""
        """The text as the model wrote it, with the numbers of its sources."""
        self.question_texts: dict[str, str] = {}
        """What the model read in place of the question, by its item's id."""
        self._response = response
        self._call: Json | None = None
        self._cited: CitedText | None = None
        self._finish_reason: str | None = None
        self._usage: Json | None = None

    @property
    def annotations(self) -> list[Json]:
        return self._cited.annotations if self._cited else []

    @property
    def prompt_texts(self) -> dict[str, str]:
        """What later prompts hold in place of the question and of the answer, by item id: see `types.PastItem`."""
        own = {self.message_id: self.written} if self.written != self.text else {}
        return {**self.question_texts, **own}

    def start_search(self, queries: Sequence[str]) -> Json:
        self._call = {
            "type": "file_search_call",
            "id": new_id("fs"),
            "status": "in_progress",
            "queries": list(queries),
            "results": None,
        }
        return self._call

    def complete_search(self, passages: Sequence[Passage], *, with_results: bool) -> Json:
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
        self._call = {**(self._call or {}), "status": "completed", "results": results if with_results else None}
        return self._call

    def cite(self, passages: Sequence[Passage]) -> None:
        """The numbers in what follows are those of these passages."""
        self._cited = CitedText(passages)

    def add(self, chunk: Json) -> str:
        """The text that a chunk adds to the answer; often none."""
        self.has_started = True
        if usage := chunk.get("usage"):
            self._usage = build_usage(usage)
        for choice in chunk["choices"]:
            self._finish_reason = choice.get("finish_reason") or self._finish_reason
            # A model may write NUL, which PostgreSQL cannot store.
            if delta := (choice["delta"].get("content") or "").replace("\x00", ""):
                self.written += delta
                return self._append(self._cited.feed(delta) if self._cited else delta)
        return ""

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

    def failed(self, error: RayconteurError) -> Json:
        details = {"code": _error_code(error), "message": error.message}
        return {**self._response, **self._outcome("failed"), "error": details}

    def _append(self, text: str) -> str:
        self.text += text
        return text

    def _outcome(self, status: Literal["completed", "incomplete", "failed"]) -> Json:
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


def build_usage(usage: Json) -> Json:
    """OpenAI's usage of a response, for vLLM's of a chat completion."""
    read = usage.get("prompt_tokens_details") or {}
    written = usage.get("completion_tokens_details") or {}
    return {
        "input_tokens": usage["prompt_tokens"],
        "input_tokens_details": {"cached_tokens": read.get("cached_tokens") or 0, "cache_write_tokens": 0},
        "output_tokens": usage["completion_tokens"],
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
