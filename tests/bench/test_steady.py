"""The growth of memory over a run."""

from bench.steady import by_minute, growth


def test_growth_is_that_of_the_highest_later_minute() -> None:
    curve = [(at_s, 1000.0) for at_s in range(0, 120, 5)]
    curve += [(at_s, 2000.0) for at_s in range(120, 180, 5)]
    curve += [(at_s, 2100.0) for at_s in range(180, 240, 5)]
    curve += [(at_s, 2040.0) for at_s in range(240, 300, 5)]

    assert by_minute(curve) == [1000, 1000, 2000, 2100, 2040]
    assert round(growth(curve, settled_s=180), 6) == 0.05


def test_one_sample_that_stands_out_is_no_growth() -> None:
    curve = [(float(at_s), 9000.0 if at_s == 200 else 2000.0) for at_s in range(0, 300, 5)]

    assert growth(curve, settled_s=180) == 0
