"""Figures: when what was asked is reached, and what is told to the report."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from bench.figures import Figure

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("figure", "is_reached"),
    [
        (Figure("ratio", 0.9, at_least=0.9), True),
        (Figure("ratio", 0.89, at_least=0.9), False),
        (Figure("p95", 100, "ms", at_most=100), True),
        (Figure("p95", 101, "ms", at_most=100), False),
        (Figure("share", 0.5, at_least=0.4, at_most=0.6), True),
        (Figure("nothing was measured", math.nan, at_most=100), False),
        (Figure("nothing was asked", 3), None),
    ],
)
def test_a_figure_reaches_its_bounds_or_does_not(figure: Figure, is_reached: bool | None) -> None:
    assert figure.is_reached is is_reached


def test_a_bench_that_fails_has_told_what_it_knew(tmp_path: Path) -> None:
    program = """
import argparse
from bench.figures import add_point, found, parse_arguments
parse_arguments(argparse.ArgumentParser())
found("p95", 12.5, "ms", at_most=100)
add_point(server="ours", goodput_per_s=2.5)
raise RuntimeError
"""
    path = tmp_path / "figures.json"

    ended = subprocess.run([sys.executable, "-c", program, "--json", path], cwd=ROOT, capture_output=True, check=False)

    told = json.loads(path.read_text())
    assert ended.returncode == 1
    assert [Figure(**each) for each in told["figures"]] == [Figure("p95", 12.5, "ms", at_most=100)]
    assert told["points"] == [{"server": "ours", "goodput_per_s": 2.5}]
