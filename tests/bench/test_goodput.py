"""The rounds of a load are one row."""

from dataclasses import replace

from bench.goodput import Phase, of_all_rounds
from bench.openloop import Attempt


def test_the_rounds_of_a_load_are_put_together() -> None:
    good, late, refused = (Attempt("default", due_s=0, began=0) for _ in range(3))
    good.end("answered")
    late.end("answered")
    refused.end("refused")
    good.first_token_s, late.first_token_s = 1.0, 9.0
    first = Phase(4, [good, refused], seconds=10, limit_s=2.0, rss_mb=(100, 110), client_share=0.1)
    second = replace(first, attempts=[good, late], rss_mb=(115, 120), client_share=0.3)
    other = replace(first, load=8)

    four, eight = of_all_rounds([first, other, second])

    assert (four.load, four.rss_mb, four.client_share) == (4, (100, 120), 0.2)
    assert (four.summary.offered_per_s, four.summary.goodput_per_s, four.summary.refused) == (0.2, 0.1, 1)
    assert eight == other
