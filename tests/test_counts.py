import numpy as np
import pytest

from serve_app.counts import Count, Counted, Counts, Times, bucket_of, milliseconds_of, times_of

REQUEST = Count("m", "request")


class Clock:
    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


def test_a_bucket_is_within_two_and_a_half_percent_of_what_falls_into_it() -> None:
    for seconds in np.geomspace(1e-5, 1000, 5000):
        assert milliseconds_of(bucket_of(float(seconds))) == pytest.approx(1e3 * seconds, rel=0.025)
    assert bucket_of(0) == 0


def test_percentiles_do_not_depend_on_the_order_of_the_buckets() -> None:
    times = times_of({300: 1, 100: 98, 200: 1})

    assert times.count == 100
    assert (times.p50_ms, times.p95_ms, times.p99_ms) == (*[milliseconds_of(100)] * 2, milliseconds_of(200))


def test_nothing_has_no_times() -> None:
    assert times_of({}) == Times(0, None, None, None, None)


def test_the_last_minute_forgets_what_is_older_and_the_rest_does_not() -> None:
    clock = Clock()
    counts = Counts(clock)
    counts.add(REQUEST)
    clock.seconds += 30
    counts.add(REQUEST, 2)

    half_a_minute = counts.read()
    clock.seconds += 31
    a_minute = counts.read()
    clock.seconds += 1000
    much_later = counts.read()
    counts.add(REQUEST)

    assert (half_a_minute.last_minute[REQUEST], half_a_minute.minute_s) == (3, 30)
    assert (a_minute.last_minute[REQUEST], a_minute.minute_s) == (2, 60)
    assert much_later.last_minute[REQUEST] == 0
    assert [each.since_start[REQUEST] for each in (half_a_minute, a_minute, much_later)] == [3, 3, 3]
    assert (counts.read().last_minute[REQUEST], counts.read().since_start[REQUEST]) == (1, 4)


def test_several_processes_count_together() -> None:
    clock = Clock()
    one, other = Counts(clock), Counts(clock)
    one.add(REQUEST)
    one.add_time("m", "queue", 0.5)
    clock.seconds += 20
    other.add(REQUEST)

    together = one.read() + other.read()

    assert together.since_start == {REQUEST: 2, Count("m", "queue", bucket_of(0.5)): 1}
    assert together.minute_s == 20
    assert Counted() + together == together
