from serve_app.admission.callers import Callers
from serve_app.admission.load import Load

ROOM = Load(32, 3200, 256)


def test_who_is_alone_may_fill_the_engine() -> None:
    callers = Callers()
    callers.add("loud", Load(30, 3000), now=0)

    assert callers.kept_from("loud", ROOM, now=0) == Load()


def test_who_has_more_than_its_part_leaves_what_others_have_used() -> None:
    callers = Callers()
    callers.add("quiet", Load(4, 400), now=0)
    callers.add("quiet", Load(-3, -300), now=1)
    callers.add("loud", Load(20, 2000), now=1)

    kept = callers.kept_from("loud", ROOM, now=1)

    assert kept == Load(3, 300, ROOM.unread)
    assert callers.kept_from("quiet", ROOM, now=1) == Load()


def test_nothing_is_kept_for_more_than_a_part() -> None:
    callers = Callers()
    callers.add("a", Load(31, 3100), now=0)
    callers.add("a", Load(-31, -3100), now=0)
    callers.add("b", Load(20, 2000), now=0)

    assert callers.kept_from("b", ROOM, now=0).sequences == 16


def test_a_weight_makes_a_larger_part() -> None:
    callers = Callers()
    callers.weights = {"b": 3.0}
    callers.add("a", Load(2, 200), now=0)
    callers.add("b", Load(20, 2000), now=0)

    assert callers.kept_from("b", ROOM, now=0) == Load()


def test_who_has_not_come_for_long_is_not_waited_for() -> None:
    callers = Callers()
    callers.add("quiet", Load(4, 400), now=0)
    callers.add("quiet", Load(-4, -400), now=1)
    callers.add("loud", Load(30, 3000), now=1)

    assert callers.kept_from("loud", ROOM, now=3600) == Load()
