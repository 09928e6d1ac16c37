"""An engine in virtual time: a step takes the longer the more it reads and writes, and reads no more than so much."""

import asyncio
import math
from dataclasses import dataclass, field

STEP_TOKENS = 256


@dataclass
class _Running:
    unread: int
    left: int
    words: asyncio.Queue[None] = field(default_factory=asyncio.Queue)


class Engine:
    """About as fast as the default model on two cores: 3.6 answers of 48 tokens a second, 32 of them at once."""

    def __init__(self, max_sequences: int, chunk_tokens: float = math.inf) -> None:
        """`chunk_tokens` are the most that it reads of one prompt in a step."""
        self.most_running = 0
        self._max_sequences, self._chunk_tokens = max_sequences, chunk_tokens
        self._waiting: list[_Running] = []
        self._running: list[_Running] = []
        self._work = asyncio.Event()

    def ask(self, prompt_tokens: int, answer_tokens: int) -> asyncio.Queue[None]:
        """A queue of the words as they come."""
        asked = _Running(prompt_tokens, answer_tokens)
        self._waiting.append(asked)
        self._work.set()
        return asked.words

    async def run(self) -> None:
        while True:
            while not self._waiting and not self._running:
                self._work.clear()
                await self._work.wait()
            room = self._max_sequences - len(self._running)
            self._running += self._waiting[:room]
            del self._waiting[:room]
            self.most_running = max(self.most_running, len(self._running))
            read, writing = 0, []
            for each in self._running:
                part = int(min(each.unread, self._chunk_tokens, STEP_TOKENS - read))
                each.unread -= part
                read += part
                if not each.unread:
                    writing.append(each)
            await asyncio.sleep(0.031 + 0.0035 * len(writing) + 0.002 * read)
            for each in writing:
                each.left -= 1
                each.words.put_nowait(None)
            self._running = [each for each in self._running if each.left]
