import re

import pytest

from serve_app import metrics
from serve_app.metrics import CATALOGUE, MAINTENANCE_SECONDS, Metric, timed
from tests.fakes import RecordedMetrics


def test_the_catalogue_has_every_metric_once() -> None:
    defined = [value for value in vars(metrics).values() if isinstance(value, Metric)]

    assert sorted(each.name for each in CATALOGUE) == sorted(each.name for each in defined)
    assert len({each.name for each in CATALOGUE}) == len(CATALOGUE)


def test_names_can_be_exported_and_only_histograms_have_buckets() -> None:
    for each in CATALOGUE:
        assert re.fullmatch(r"rayconteur_[a-z_]+", each.name)
        # Ray adds it to a counter's name.
        assert not each.name.endswith("_total")
        assert bool(each.boundaries) == (each.kind == "histogram")
        assert list(each.boundaries) == sorted(each.boundaries)


def test_a_block_is_timed_unless_it_raises() -> None:
    recorded = RecordedMetrics()

    with timed(recorded, MAINTENANCE_SECONDS, trigger="requested"):
        pass
    with pytest.raises(RuntimeError), timed(recorded, MAINTENANCE_SECONDS, trigger="automatic"):
        raise RuntimeError

    assert list(recorded.observed) == [("rayconteur_maintenance_seconds", "requested")]
    assert len(recorded.observed["rayconteur_maintenance_seconds", "requested"]) == 1
