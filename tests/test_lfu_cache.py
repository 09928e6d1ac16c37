from hypothesis import given
from hypothesis import strategies as st

from serve_app.lfu_cache import LfuCache
from serve_app.vitals import CacheSize


class Reference:
    """LFUDA, as the paper says it: worth = uses + age, and the age is the worth of what was evicted last."""

    def __init__(self, max_entries: int) -> None:
        self.max_entries = max_entries
        self.uses: dict[bytes, int] = {}
        self.worths: dict[bytes, tuple[int, int]] = {}
        self.age = self.time = 0

    def use(self, key: bytes) -> bool:
        self.time += 1
        if was_there := key in self.uses:
            self.uses[key] += 1
        else:
            if len(self.uses) == self.max_entries:
                least = min(self.worths, key=self.worths.__getitem__)
                self.age = self.worths.pop(least)[0]
                del self.uses[least]
            self.uses[key] = 1
        self.worths[key] = (self.uses[key] + self.age, self.time)
        return was_there


@given(st.integers(1, 5), st.lists(st.sampled_from("abcdefgh"), max_size=200))
def test_it_evicts_what_the_paper_says(max_entries: int, asked: list[str]) -> None:
    cache, reference = LfuCache(max_entries, 10**6), Reference(max_entries)

    for letter in asked:
        key = letter.encode()
        found = cache.find(key)
        if found is None:
            cache.keep(key, letter)

        assert (found is not None) == reference.use(key)
        assert found in (None, letter)
        assert set(cache) == set(reference.uses)


@given(st.lists(st.tuples(st.sampled_from("abcdefgh"), st.binary(max_size=300)), max_size=60))
def test_neither_bound_is_ever_passed(kept: list[tuple[str, bytes]]) -> None:
    cache = LfuCache(max_entries=4, max_bytes=500)

    for letter, value in kept:
        cache.keep(letter.encode(), value)

        assert len(cache) <= 4
        assert sum(len(cache[key]) for key in list(cache)) == cache.currsize <= 500
        assert cache.find(letter.encode()) in (value, None)


def test_what_was_popular_once_gives_way_in_the_end() -> None:
    cache = LfuCache(max_entries=2, max_bytes=10**6)
    cache.keep(b"old", "old")
    for _ in range(10):
        cache.find(b"old")

    for number in range(20):
        cache.keep(b"%d" % number, number)
        cache.find(b"%d" % number)

    assert b"old" not in cache


def test_what_is_larger_than_the_whole_cache_drives_nothing_out() -> None:
    cache = LfuCache(max_entries=10, max_bytes=200)
    cache.keep(b"small", "small")

    cache.keep(b"large", bytes(range(256)) * 2)

    assert set(cache) == {b"small"}


def test_what_a_reader_does_to_a_value_is_its_own_affair() -> None:
    cache = LfuCache(max_entries=10, max_bytes=1000)
    cache.keep(b"key", ["a"])

    cache.find(b"key").append("b")  # type: ignore[union-attr]

    assert cache.find(b"key") == ["a"]


def test_it_can_be_emptied_and_used_again() -> None:
    cache = LfuCache(max_entries=2, max_bytes=1000)
    for letter in (b"a", b"b", b"c"):
        cache.keep(letter, letter)

    cache.clear()

    assert (len(cache), cache.currsize, cache.find(b"c")) == (0, 0, None)
    for letter in (b"a", b"b", b"c"):
        cache.keep(letter, letter)
    assert set(cache) == {b"b", b"c"}


async def test_it_tells_its_size_and_is_released() -> None:
    cache = LfuCache(max_entries=2, max_bytes=1000)
    cache.keep(b"a", "a")

    assert cache.size() == CacheSize(1, int(cache.currsize))
    assert await cache.release()
    assert (cache.size(), cache.find(b"a")) == (CacheSize(0, 0), None)
