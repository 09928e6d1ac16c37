from serve_app.admission.forecast import tokens_until_free
from serve_app.admission.load import Load

INSIDE = [(40.0, Load(1, 100)), (10.0, Load(1, 100)), (25.0, Load(1, 500))]


def test_a_place_is_free_when_the_first_has_written_what_it_still_has_to() -> None:
    assert tokens_until_free(Load(1), INSIDE, 50) == 10


def test_tokens_of_the_cache_are_waited_for_like_places() -> None:
    assert tokens_until_free(Load(0, 400), INSIDE, 50) == 25


def test_what_all_inside_cannot_free_comes_after_them() -> None:
    assert tokens_until_free(Load(6), INSIDE, 50) == 40 + 50
