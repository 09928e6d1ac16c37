"""`LfuCache`: what is asked for most often stays, but not for ever.

Least frequently used with dynamic aging (LFUDA): Arlitt, Cherkasova, Dilley, Friedrich and Jin, "Evaluating Content
Management Techniques for Web Proxy Caches", ACM SIGMETRICS Performance Evaluation Review 27(4), 2000. The worth of an
entry is how often it was asked for, plus the worth that the last evicted one had when it was last asked for. So what
was popular once must be asked for again to stay, and it takes no clock and no parameter.
"""

import heapq
import pickle
import zlib
from itertools import count
from typing import Any, ClassVar

from cachetools import Cache

from serve_app.vitals import CacheName, CacheSize

_Worth = tuple[int, int]
"""With a number that grows, so that of two that are worth the same the one used longest ago gives way."""


class LfuCache(Cache[bytes, bytes]):
    """Values in memory, packed: at most `max_entries` of them, and at most `max_bytes` in all. For one thread."""

    name: ClassVar[CacheName] = "responses"

    def __init__(self, max_entries: int, max_bytes: int) -> None:
        super().__init__(max_bytes, getsizeof=len)
        self._max_entries = max_entries
        self._uses: dict[bytes, int] = {}
        self._worths: dict[bytes, _Worth] = {}
        self._heap: list[tuple[_Worth, bytes]] = []
        """Each key once, with what it was worth at some time: no more than it is now."""
        self._age = 0
        self._numbers = count()

    # Whoever asks knows what was kept under its key.
    def find(self, key: bytes) -> Any | None:
        """A copy of the value, whose worth this raises. None if there is none."""
        packed = self.get(key)
        # Nobody but this process has written it.
        return None if packed is None else pickle.loads(zlib.decompress(packed))

    def keep(self, key: bytes, value: object) -> None:
        """Instead of what is worth least. What is larger than the whole cache is not kept."""
        packed = zlib.compress(pickle.dumps(value), level=1)
        if len(packed) <= self.maxsize and self._max_entries:
            self[key] = packed

    def size(self) -> CacheSize:
        return CacheSize(len(self), int(self.currsize))

    async def release(self) -> bool:
        self.clear()
        return True

    def __getitem__(self, key: bytes) -> bytes:
        packed = super().__getitem__(key)
        self._use(key)
        return packed

    def __setitem__(self, key: bytes, packed: bytes) -> None:
        while key not in self and len(self) >= self._max_entries:
            self.popitem()
        super().__setitem__(key, packed)
        if key not in self._uses:
            heapq.heappush(self._heap, (self._use(key), key))

    def __delitem__(self, key: bytes) -> None:
        super().__delitem__(key)
        del self._uses[key], self._worths[key]

    def popitem(self) -> tuple[bytes, bytes]:
        """Remove what is worth least. Raises `KeyError` if there is nothing."""
        while self._heap:
            worth, key = self._heap[0]
            current = self._worths.get(key)
            if current is None:
                heapq.heappop(self._heap)
            elif current != worth:
                heapq.heapreplace(self._heap, (current, key))
            else:
                heapq.heappop(self._heap)
                self._age = worth[0]
                packed = super().__getitem__(key)
                del self[key]
                return key, packed
        raise KeyError("the cache is empty")

    def clear(self) -> None:
        super().clear()
        self._uses.clear()
        self._worths.clear()
        self._heap.clear()

    def _use(self, key: bytes) -> _Worth:
        self._uses[key] = self._uses.get(key, 0) + 1
        self._worths[key] = (self._uses[key] + self._age, next(self._numbers))
        return self._worths[key]
