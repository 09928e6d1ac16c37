"""What every process of this machine takes of the processor and of memory: `python -m bench.processes --seconds 30`.

Run it beside a served application, idle or under load. A hundredth of a core is one percent here, so two busy cores are
200 %. Memory is RSS, which counts pages that processes share once for each of them.
"""

import argparse
import time

import psutil

SHOWN = 25


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=30)
    seconds = parser.parse_args().seconds

    before = _cpu_seconds()
    time.sleep(seconds)
    after = _cpu_seconds()
    used = {each: 100 * (after[each] - before.get(each, 0)) / seconds for each in after}

    print("| % of a core | RSS MB | process |\n|---|---|---|")
    for process in sorted(used, key=used.__getitem__, reverse=True)[:SHOWN]:
        if used[process] > 0:
            print(f"| {used[process]:.1f} | {_rss_mb(process):.0f} | {_name(process)} |")
    print(f"\nAll {len(used)} processes: {sum(used.values()):.1f} % of a core, {sum(map(_rss_mb, used)):.0f} MB")


def rss_mb(process: psutil.Process) -> float:
    """Of a process and all that it has started, together."""
    return sum(map(_rss_mb, [process, *process.children(recursive=True)]))


def _cpu_seconds() -> dict[psutil.Process, float]:
    seconds = {}
    for process in psutil.process_iter():
        try:
            times = process.cpu_times()
        except psutil.Error:
            continue
        seconds[process] = times.user + times.system
    return seconds


def _rss_mb(process: psutil.Process) -> float:
    try:
        return float(process.memory_info().rss) / 1e6
    except psutil.Error:
        return 0.0


def _name(process: psutil.Process) -> str:
    try:
        return (" ".join(process.cmdline()) or process.name())[:100]
    except psutil.Error:
        return "(ended)"


if __name__ == "__main__":
    main()
