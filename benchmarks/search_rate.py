"""Jobs that the search judges per second on one core: memory at `high` and expected time of each. Exits 1 below the promised rate.

    python benchmarks/search_rate.py [model] [gpu]

The space is the search's own (frames x micro-batches x rollouts x optimizers), at many lengths. The symbolic walks of new structures are
inside the measured time. Counted in processor seconds of this one process, so that other work on the machine does not count.
"""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Iterator

from llamamath.planner.budget import Budget
from llamamath.planner.job import Job
from llamamath.planner.model_files.config_file import resolve_model
from llamamath.planner.probe.devices import device_for
from llamamath.planner.search.model import Searcher
from llamamath.planner.search.request import Request, start
from llamamath.planner.search.space import frames, micro_batches, optimizers, rollouts

PROMISED_JOBS_PER_SECOND = 10_000
COMPLETION_LENGTHS = range(256, 4352, 64)


def space(searcher: Searcher, model: str) -> Iterator[Job]:
    """Every job of the search for one model at many completion lengths."""
    architecture = resolve_model(model)
    first = start(searcher.request, architecture, searcher.device)
    for frame in frames(first.job, first, searcher.request, architecture, searcher.device):
        for batch in micro_batches(frame, first):
            for sized in rollouts(frame, first, batch):
                for optim in optimizers(frame, first, searcher.device):
                    for length in COMPLETION_LENGTHS:
                        yield sized.changed(optim=optim, max_completion_length=length)


def main(model: str = "meta-llama/Llama-3.2-3B-Instruct", gpu: str = "rtx3090") -> int:
    """Measure and print; 1 if it is slower than promised."""
    device, _ = device_for(gpu)
    searcher = Searcher(Request(model=model), device, Budget())
    architecture = resolve_model(model)
    jobs = list(space(searcher, model))
    began, began_wall = time.process_time(), time.perf_counter()
    fitting = 0
    for job in jobs:
        fitting += searcher.shortfall(job, architecture) <= 0
        searcher.seconds(job, architecture)
    seconds, wall_seconds = time.process_time() - began, time.perf_counter() - began_wall
    rate = len(jobs) / seconds
    print(f"{model} on {device.name}: {len(jobs):,} jobs, {fitting:,} of which fit")
    print(f"{rate:,.0f} jobs per processor second ({seconds:.2f} s; {wall_seconds:.2f} s on the clock), walks of new structures included")
    print(f"Python {platform.python_version()}, {platform.machine()}, {platform.system()}; promised: {PROMISED_JOBS_PER_SECOND:,}")
    return 0 if rate >= PROMISED_JOBS_PER_SECOND else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
