"""What a bench found, for the report: each figure with what was asked of it, written as JSON after `--json FILE`.

A bench parses its command line with `parse_arguments` and says `found` beside what it prints. The file is written when
the process ends, so that a bench that fails half-way has told what it knew.
"""

import argparse
import atexit
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Figure:
    """A line of the report. `at_least` and `at_most` are what was asked for, if anything was."""

    what: str
    value: float
    unit: str = ""
    at_least: float | None = None
    at_most: float | None = None

    @property
    def is_reached(self) -> bool | None:
        """None: nothing was asked. A value that could not be measured (NaN) reaches nothing."""
        bounds = [self.value >= self.at_least] if self.at_least is not None else []
        bounds += [self.value <= self.at_most] if self.at_most is not None else []
        return all(bounds) if bounds else None


_figures: list[Figure] = []
_points: list[dict[str, Any]] = []


def parse_arguments(parser: argparse.ArgumentParser) -> argparse.Namespace:
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures and what was asked there as well")
    arguments = parser.parse_args()
    if arguments.json:
        atexit.register(write, arguments.json)
    return arguments


def found(
    what: str, value: float, unit: str = "", *, at_least: float | None = None, at_most: float | None = None
) -> None:
    _figures.append(Figure(what, value, unit, at_least, at_most))


def add_point(**point: float | str) -> None:
    """A point of the report's plots."""
    _points.append(point)


def write(path: Path) -> None:
    path.write_text(json.dumps({"figures": [asdict(each) for each in _figures], "points": _points}, indent=1))
