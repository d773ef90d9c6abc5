"""What the benchmarks beside peers share: rounds in alternation, medians and their ratios, peak memory, the report."""

import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

Work = Callable[[], object]


def seconds(work: Work, device: str, *, cpu_time: bool = False) -> float:
    """Time of one call until the device has done it: on the wall, or the process's own on its CPUs."""
    clock = time.process_time if cpu_time else time.perf_counter
    if device == "cuda":  # what was begun before is not this call's
        torch.cuda.synchronize()
    start = clock()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return clock() - start


def alternate(works: dict[str, Work], rounds: int, device: str, *, cpu_time: bool = False) -> dict[str, list[float]]:
    """Seconds of each contender in every round; all take their turn in a round, so that they share what disturbs it."""
    times: dict[str, list[float]] = {contender: [] for contender in works}
    for _ in range(rounds):
        for contender, work in works.items():
            times[contender].append(seconds(work, device, cpu_time=cpu_time))
    return times


def medians(times: dict[str, list[float]], amount: int, unit: str = "images") -> dict[str, dict[str, float]]:
    """By contender: the median, `amount` of the unit per second of it, and its ratio to that of `triptych`."""
    ours = statistics.median(times["triptych"])
    result = {}
    for contender, values in times.items():
        median = statistics.median(values)
        result[contender] = {
            "median_seconds": median,
            f"{unit}_per_second": amount / median,
            "ratio_to_triptych": median / ours,
        }
    return result


def peak_megabytes(work: Work, device: str, calls: int = 1) -> float:
    """Peak memory of calls beyond what was held before: the allocator's on a GPU, else the process's.

    On a CPU the peak is forgotten before the calls where the system can do that (Linux); elsewhere a process's peak
    never falls, and tells about the first work of a process only. What was freed and is used again does not count.
    """
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        forget = Path("/proc/self/clear_refs")
        if forget.exists():
            forget.write_text("5")  # the peak becomes what is held now
        before = peak_resident_megabytes()
    for _ in range(calls):
        work()
    if device == "cuda":
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    return peak_resident_megabytes() - before


def peak_resident_megabytes() -> float:
    """The most memory that this process ever held."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux: `ru_maxrss` would be inherited from the parent process
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def number_of_process(module: str, *options: object) -> float:
    """The last thing that a module prints, run in a process of its own."""
    command = [sys.executable, "-W", "ignore", "-m", module, *map(str, options)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def device_name(device: str) -> str:
    """As it stands in the report."""
    return torch.cuda.get_device_name() if device == "cuda" else platform.processor() or "CPU"


class Column(NamedTuple):
    """Of the table of results."""

    heading: str
    layout: str  # as `format` takes it: `<14`
    cell: Callable[[dict[str, Any]], str]  # of a row


def text(key: str, width: int) -> Column:
    """What a row holds under a key."""
    return Column(key, f"<{width}", lambda row: row[key])


def measured(
    unit: str, *, median_width: int = 10, digits: int = 1, rate_width: int = 9, rate: str = ".2f", unknown: str = ""
) -> list[Column]:
    """Median, units per second, ratio and peak.

    Args:
        unit: as in `medians`.
        median_width: of the column.
        digits: of the milliseconds, after the point.
        rate_width: of the column.
        rate: format of the units per second.
        unknown: stands for a peak that was not measured.
    """
    return [
        Column("median", f">{median_width}", lambda row: f"{row['median_seconds'] * 1000:.{digits}f} ms"),
        Column(f"{unit}/s", f">{rate_width}", lambda row: format(row[f"{unit}_per_second"], rate)),
        Column("ratio", ">6", lambda row: f"{row['ratio_to_triptych']:.2f}"),
        Column("peak", ">9", lambda row: _megabytes(row["peak_megabytes"], unknown)),
    ]


def _megabytes(value: float | None, unknown: str) -> str:
    return unknown if value is None else f"{value:.0f} MB"


def report(
    setting: dict[str, Any],
    rows: list[dict[str, Any]],
    columns: Sequence[Column],
    *,
    as_json: bool,
    checks: dict[str, dict[str, float]] | None = None,
) -> None:
    """Print the setting, how far the results are apart (by network), and the table; or all of it as JSON."""
    if as_json:
        compared = {} if checks is None else {"checks": checks}
        print(json.dumps({"setting": setting, **compared, "rows": rows}, indent=2))
        return
    print(", ".join(f"{key} {value}" for key, value in setting.items()))
    for name, found in (checks or {}).items():
        print(f"{name}: ours against torchvision's: " + ", ".join(f"{key} {value:.3g}" for key, value in found.items()))
    print("\n" + " ".join(format(column.heading, column.layout) for column in columns))
    for row in rows:
        print(" ".join(format(column.cell(row), column.layout) for column in columns))
