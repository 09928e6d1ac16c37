"""The report: its table, its plots, and benches that end badly."""

import subprocess
import sys
import xml.etree.ElementTree as xml
from dataclasses import replace
from pathlib import Path
from subprocess import DEVNULL, PIPE

import pytest

from bench.figures import Figure
from bench.plots import draw_plots
from bench.report import BENCHES, Run, as_markdown, as_text, ended_in_time, run_command
from bench.servers import ROOT

RUN = Run(
    name="goodput",
    command="python -m bench.goodput",
    outcome="done",
    seconds=63.0,
    day="2026-11-26",
    commit="abc1234",
    machine="2 cores of EPYC, 24 GiB",
    figures=[Figure("goodput, of its peak", 0.95, at_least=0.9), Figure("refusals, p95", 120, "ms", at_most=100)],
    points=[],
    output="| server | goodput/s |\n|---|---|\n| Rayconteur | 2.50 |",
)


def test_the_table_says_what_was_asked_and_whether_it_was_reached() -> None:
    report = as_markdown([RUN])

    assert "On 2 cores of EPYC, 24 GiB:" in report
    assert "| goodput, of its peak | ≥ 0.9 | 0.95 | reached | `python -m bench.goodput` | 63 s | abc1234 |" in report
    assert "| refusals, p95 | ≤ 100 ms | 120 ms | **missed** | `python -m bench.goodput` | 63 s | abc1234 |" in report
    assert RUN.output in report


def test_a_bench_that_failed_is_a_line_of_the_table() -> None:
    report = as_markdown([replace(RUN, outcome="failed: ValueError: a|b", figures=[])])

    assert "| goodput | | failed: ValueError: a/b | **missed** |" in report


def test_each_machine_has_a_table_of_its_own() -> None:
    report = as_markdown([RUN, replace(RUN, name="scale", machine="8 cores of another")])

    assert report.count("| what | asked | found |") == 2


@pytest.mark.parametrize(
    ("value", "text"), [(0.94999, "0.95"), (12.345, "12.3"), (1234.5, "1,234 ms"), (0, "0 ms"), (float("nan"), "none")]
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert as_text(value, "ms" if "ms" in text else "") == text


def test_every_bench_is_in_the_report() -> None:
    # Those that show where something comes from, and measure nothing that was asked.
    others = {"report", "processes", "retrieval", "ray_app"}
    commands = {path.stem for path in (ROOT / "bench").glob("*.py") if "\ndef main(" in path.read_text()}

    assert {bench.name for bench in BENCHES} == commands - others


def test_the_plots_are_the_same_for_the_same_figures(tmp_path: Path) -> None:
    points = [
        {
            "server": server,
            "offered_per_s": load,
            "goodput_per_s": 2.0,
            "first_token_p50_ms": 200.0,
            "first_token_p95_ms": 900.0,
        }
        for server in ("Rayconteur", "vLLM's own server")
        for load in (2.5, 5.0)
    ]

    plots = draw_plots(points, tmp_path)
    first = [(tmp_path / plot).read_bytes() for plot in plots]
    draw_plots(points, tmp_path)

    assert plots == ["goodput.svg", "latency.svg"]
    assert [(tmp_path / plot).read_bytes() for plot in plots] == first
    assert [xml.fromstring(each).tag for each in first] == ["{http://www.w3.org/2000/svg}svg"] * 2


# --- running ------------------------------------------------------------------------------------


def command(program: str) -> list[str]:
    return [sys.executable, "-c", program]


def test_a_command_that_ends_well_is_done(tmp_path: Path) -> None:
    output = tmp_path / "output.md"

    assert run_command(command("import os; print(os.environ['ASKED'])"), {"ASKED": "yes"}, output, 60) == "done"
    assert output.read_text() == "yes\n"


def test_a_command_that_fails_says_why(tmp_path: Path) -> None:
    outcome = run_command(command("raise ValueError('no store\\n[SQL: SELECT]')"), {}, tmp_path / "output.md", 60)

    assert outcome == "failed: ValueError: no store"


def test_a_command_that_ends_itself_is_quoted(tmp_path: Path) -> None:
    outcome = run_command(command("import sys; sys.exit('name a folder')"), {}, tmp_path / "output.md", 60)

    assert outcome == "failed: name a folder"


def test_a_command_whose_time_is_over_may_clean_up() -> None:
    program = "import signal\ntry:\n  print('at work', flush=True)\n  signal.pause()\nfinally:\n  print('cleaned up')"
    with subprocess.Popen(command(program), stdout=PIPE, stderr=DEVNULL, text=True) as process:
        assert process.stdout
        process.stdout.readline()
        with ended_in_time(process, budget_s=0) as is_over:
            said = process.stdout.read()
            process.wait()

    assert is_over.is_set()
    assert said == "cleaned up\n"


def test_a_command_whose_time_is_over_is_not_done(tmp_path: Path) -> None:
    outcome = run_command(command("import signal; signal.pause()"), {}, tmp_path / "output.md", budget_s=0)

    assert outcome == "over its time of 0 s"
