"""Prints how long commands take from a cold start, whole process included: the least and the median of several runs.

python benchmarks/cold_start.py
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time

COMMANDS = (
    ("--help",),
    ("fit", "llama-3.2-3b", "--gpu", "rtx3060"),
    ("fit",),
    ("plan", "llama-3.2-3b", "--gpu", "rtx3090", "-o", "-"),
    ("plan", "auto", "--gpu", "rtx3060", "-o", "-"),
)
RUNS = 7


def seconds(arguments: tuple[str, ...]) -> float:
    """Wall time of one run of `llamamath` with these arguments."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "llamamath", *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    return time.perf_counter() - began


def main() -> None:
    """One line per command, beside the bare interpreter, so that slow machines can be compared."""
    bare = min(_interpreter() for _ in range(RUNS))
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; python -c pass: {bare:.3f} s")
    for arguments in COMMANDS:
        found = [seconds(arguments) for _ in range(RUNS)]
        print(f"llamamath {' '.join(arguments):44s} least {min(found):.3f} s  median {statistics.median(found):.3f} s")


def _interpreter() -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", "pass"], check=True)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
