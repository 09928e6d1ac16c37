"""All that is measured, as one report: `make bench`, or `python -m bench.report [--only NAME …] [--quick]`.

Runs each bench as a command of its own, within a time budget, and writes after each of them what is known by then:
`bench/report/report.md` with a table of what was asked and what was found, `goodput.svg` and `latency.svg`. What a
bench found is kept in `bench/report/NAME.json`, so that `--only` renews some lines and leaves the others, each with its
commit and machine. `--quick` runs short forms, which say that everything works and no more; they are written into
`bench/report/quick/`. A bench that fails or runs out of time is a line of the table, too. What is served is
`serve_config.yaml`, or the YAML that `RAYCONTEUR_CONFIG` names: its report goes into a folder with that one's name.
"""

import argparse
import datetime
import json
import math
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from bench.figures import Figure
from bench.plots import draw_plots
from bench.servers import OURS, ROOT
from tests.served.application import CONFIG

FOLDER = ROOT / "bench" / "report"
IS_SHIPPED = CONFIG == ROOT / "serve_config.yaml"
"""Whether this is what is served."""
END_S = 150
"""For a bench that is told to end to stop what it has started."""


_ERROR = re.compile(r"[\w.]*(Error|Exception|Failed)\b")


@dataclass(frozen=True, slots=True)
class Bench:
    """A module of `bench/`, and how it is run here."""

    name: str
    budget_s: int
    arguments: tuple[str, ...] = ()
    quick: tuple[str, ...] | None = None
    """Its arguments for the short form. None: it is short already."""
    environment: dict[str, str] = field(default_factory=dict)


BENCHES = (
    Bench("overhead", 900, quick=("--only", OURS)),
    Bench("goodput", 1500, quick=("--loads", "1", "4", "--rounds", "1", "--seconds", "6", "--warm", "4")),
    Bench("sampling", 300),
    Bench("priorities", 420, quick=("--seconds", "10", "--warm", "5", "--unloaded", "4")),
    Bench("fairness", 600, quick=("--seconds", "15", "--warm", "5")),
    Bench("cache", 600, quick=("--prompts", "1", "--repeats", "5")),
    Bench("balance", 600, quick=("--busy", "0", "4", "--rounds", "1")),
    Bench("steady", 1600, quick=("--minutes", "1")),
    Bench("eval", 900),
    Bench("followups", 600),
    Bench("ingestion", 900, quick=("--documents", "50")),
    Bench("many_files", 1800, quick=("--files", "200", "--ingest", "50")),
    Bench("scale", 3600, quick=("--rows", "10000")),
    Bench("churn", 900, quick=("--rounds", "20")),
    Bench("soak", 900, quick=("--seconds", "30", "--kill-every", "10")),
    Bench("backup", 600, quick=("--passages", "2000")),
    Bench("reembed", 900, quick=("--documents", "100")),
    Bench("sessions", 900),
    Bench("insights", 600, ("--examples", "10"), environment={"OMP_NUM_THREADS": "1"}),
    Bench("conversations", 1200, quick=("--seconds", "30", "--clients", "10")),
    Bench("memory", 2700, quick=("--conversations", "1", "--pause", "1")),
    Bench("summaries", 900, quick=("--conversations", "1")),
)


@dataclass(frozen=True, slots=True)
class Run:
    """A bench that was run. `outcome` is "done", or why not."""

    name: str
    command: str
    outcome: str
    seconds: float
    day: str
    commit: str
    machine: str
    figures: list[Figure]
    points: list[dict[str, Any]]
    output: str
    """What it printed: Markdown."""


def main() -> None:
    # Also where a shell without jobs has us ignore it: a bench is ended by it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [bench.name for bench in BENCHES]
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", help=f"of: {', '.join(names)}")
    parser.add_argument("--quick", action="store_true", help="short forms, into a folder of their own")
    arguments = parser.parse_args()
    chosen = [bench for bench in BENCHES if not arguments.only or bench.name in arguments.only]
    folder = FOLDER if IS_SHIPPED else FOLDER / CONFIG.stem
    folder = folder / "quick" if arguments.quick else folder
    folder.mkdir(parents=True, exist_ok=True)
    for number, bench in enumerate(chosen, 1):
        say(f"[{number}/{len(chosen)}] {bench.name}, at most {minutes(bench.budget_s)}")
        run = run_bench(bench, quick=arguments.quick)
        say(f"[{number}/{len(chosen)}] {bench.name}: {run.outcome} after {minutes(run.seconds)}, {tally(run)}")
        (folder / f"{bench.name}.json").write_text(json.dumps(asdict(run), indent=1) + "\n")
        write_report(folder, read_runs(folder))
    say(f"written: {folder.relative_to(ROOT) / 'report.md'}")


# --- running ------------------------------------------------------------------------------------


def run_bench(bench: Bench, *, quick: bool) -> Run:
    given = bench.quick if quick and bench.quick is not None else bench.arguments
    shown = " ".join(
        [*(f"{name}={value}" for name, value in bench.environment.items()), f"python -m bench.{bench.name}", *given]
    )
    shown = shown if IS_SHIPPED else f"RAYCONTEUR_CONFIG={CONFIG.name} {shown}"
    with tempfile.TemporaryDirectory() as folder:
        found, output = Path(folder, "figures.json"), Path(folder, "output.md")
        command = [sys.executable, "-m", f"bench.{bench.name}", *given, "--json", str(found)]
        began = time.monotonic()
        outcome = run_command(command, bench.environment, output, bench.budget_s)
        seconds = time.monotonic() - began
        told = json.loads(found.read_text()) if found.exists() else {"figures": [], "points": []}
        printed = output.read_text()
    return Run(
        name=bench.name,
        command=shown,
        outcome=outcome,
        seconds=round(seconds, 1),
        day=datetime.date.today().isoformat(),
        commit=current_commit(),
        machine=describe_machine(),
        figures=[Figure(**each) for each in told["figures"]],
        points=told["points"],
        output=printed,
    )


def run_command(command: Sequence[str], environment: dict[str, str], output: Path, budget_s: float) -> str:
    """Run it, show what it says on stderr, and say how it ended. It is interrupted when its time is over."""
    said: list[str] = []
    with (
        output.open("wb") as file,
        subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "HF_HUB_OFFLINE": "1", **environment},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        ) as process,
        ended_in_time(process, budget_s) as is_over,
    ):
        assert process.stderr
        for line in process.stderr:
            say(f"    {line.rstrip()}")
            # Those of an exception group are drawn with a frame.
            said.append(line.strip(" |\n"))
        process.wait()
    if is_over.is_set():
        return f"over its time of {minutes(budget_s)}"
    return "done" if process.returncode == 0 else f"failed: {why(said)}"


def why(said: Sequence[str]) -> str:
    """The last error that a process spoke of, else its last words."""
    errors = [line for line in said if _ERROR.match(line)]
    return (errors or [*filter(None, said)] or ["it said nothing"])[-1][:200]


@contextmanager
def ended_in_time(process: subprocess.Popen[str], budget_s: float) -> Iterator[threading.Event]:
    """The event is set once it has been interrupted for its time. What does not end then is killed."""
    is_over = threading.Event()

    def interrupt() -> None:
        is_over.set()
        process.send_signal(signal.SIGINT)

    timers = [
        threading.Timer(budget_s, interrupt),
        threading.Timer(budget_s + END_S, os.killpg, (process.pid, signal.SIGKILL)),
    ]
    for timer in timers:
        timer.start()
    try:
        yield is_over
    finally:
        for timer in timers:
            timer.cancel()
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(END_S)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)


def current_commit() -> str:
    """With a + if the code is not quite that."""

    def git(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)

    commit = git("rev-parse", "--short", "HEAD").stdout.strip()
    # What the report itself writes is no change of the code.
    is_changed = git("diff", "--quiet", "HEAD", "--", ".", ":!bench/report").returncode != 0
    return f"{commit or 'unknown'}{'+' if is_changed else ''}"


def describe_machine() -> str:
    told = Path("/proc/cpuinfo").read_text()
    model = re.search(r"^model name\s*: (.+)$", told, re.MULTILINE)
    name = model[1] if model else platform.processor()
    # It decides more than the name does: both models run in bfloat16 where the CPU multiplies in it, else in float32.
    bfloat16 = "with" if "avx512_bf16" in told else "without"
    memory_gib = psutil.virtual_memory().total / 2**30
    gpus = "".join(f", {gpu}" for gpu in name_gpus())
    return f"{len(os.sched_getaffinity(0))} cores of {name} {bfloat16} bfloat16, {memory_gib:.0f} GiB{gpus}"


def name_gpus() -> list[str]:
    try:
        command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")[:-1]
    except (OSError, subprocess.CalledProcessError):
        return []


# --- writing ------------------------------------------------------------------------------------


def read_runs(folder: Path) -> list[Run]:
    """In the order of the benches."""
    runs = []
    for bench in BENCHES:
        path = folder / f"{bench.name}.json"
        if path.exists():
            told = json.loads(path.read_text())
            runs.append(Run(**{**told, "figures": [Figure(**each) for each in told["figures"]]}))
    return runs


def write_report(folder: Path, runs: Sequence[Run]) -> None:
    points = next((run.points for run in runs if run.name == "goodput"), [])
    plots = draw_plots(points, folder) if points else []
    (folder / "report.md").write_text(as_markdown(runs, plots))


def as_markdown(runs: Sequence[Run], plots: Sequence[str] = ()) -> str:
    lines = ["# What was measured", "", "Written by `make bench`; do not edit. Each line names its command.", ""]
    for machine in dict.fromkeys(run.machine for run in runs):
        lines += [f"On {machine}:", "", "| what | asked | found | | command | took | commit |", f"|{'---|' * 7}"]
        lines += [row for run in runs if run.machine == machine for row in table_rows(run)]
        lines.append("")
    for plot in plots:
        lines += [f"![{Path(plot).stem}]({plot})", ""]
    for run in runs:
        lines += [
            f"## {run.name}",
            "",
            f"`{run.command}`, {run.day}: {run.outcome.removesuffix('.')}.",
            "",
            as_shown(run.output),
            "",
        ]
    return "\n".join(lines)


def as_shown(output: str) -> str:
    """What has no table is no Markdown, but aligned lines."""
    text = output.strip()
    return text if "|---" in text or not text else f"```\n{text}\n```"


def table_rows(run: Run) -> list[str]:
    """Of the summary: each figure, and a line for a bench that did not get to its end."""
    where = f"`{run.command}` | {minutes(run.seconds)} | {run.commit} |"
    rows = [
        f"| {figure.what} | {as_bound(figure)} | {as_text(figure.value, figure.unit)} | {verdict(figure)} | {where}"
        for figure in run.figures
    ]
    if run.outcome != "done":
        rows.append(f"| {run.name} | | {run.outcome.replace('|', '/')} | **missed** | {where}")
    return rows


def as_bound(figure: Figure) -> str:
    bounds = [] if figure.at_least is None else [f"≥ {as_text(figure.at_least, figure.unit)}"]
    bounds += [] if figure.at_most is None else [f"≤ {as_text(figure.at_most, figure.unit)}"]
    return " and ".join(bounds)


def as_text(value: float, unit: str) -> str:
    """In three significant digits, and all of a larger number."""
    if math.isnan(value):
        return "none"
    number = f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"
    return f"{number} {unit}".strip()


def verdict(figure: Figure) -> str:
    return {None: "", True: "reached", False: "**missed**"}[figure.is_reached]


def tally(run: Run) -> str:
    reached = [figure.is_reached for figure in run.figures]
    return f"{reached.count(True)} reached, {reached.count(False)} missed, {reached.count(None)} without a bound"


def minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
