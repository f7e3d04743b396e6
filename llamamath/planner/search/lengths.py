"""Objective context: the longest length that any frame fits."""

from __future__ import annotations

from collections.abc import Callable

from llamamath.planner.architecture import Architecture
from llamamath.planner.device import Device
from llamamath.planner.job import Job
from llamamath.planner.search.request import Request, Start
from llamamath.planner.search.space import frames, least
from llamamath.planner.throughput.token_lengths import GRANULARITY


def longest(
    request: Request, architecture: Architecture, device: Device, start: Start, job: Job, fits: Callable[[Job], bool]
) -> Job | None:
    """`job` at the largest length that any frame fits at its smallest micro-batch: a multiple of GRANULARITY, or the model's limit.

    None if no frame fits at any length. fits: whether a job stays inside device and RAM; memory never falls with the length.
    """
    best: Job | None = None
    for frame in frames(job, start, request, architecture, device):
        smallest = least(frame, start, device)
        if smallest is not None:
            length = _longest_of_frame(architecture, start, smallest, best, fits)
            best = best if length is None else with_length(job, start, length)
    return best


def _longest_of_frame(architecture: Architecture, start: Start, smallest: Job, best: Job | None, fits: Callable[[Job], bool]) -> int | None:
    """The largest length of one frame, if it is beyond `best`'s."""
    most = architecture.max_position_embeddings
    rest = smallest.sequence_length - (getattr(smallest, length_field(start) or "", None) or 0)
    first = low = (rest if best is None else best.sequence_length) // GRANULARITY
    high = -(-most // GRANULARITY)
    while low < high:
        middle = (low + high + 1) // 2
        grown = with_length(smallest, start, min(middle * GRANULARITY, most))
        if grown is not None and fits(grown):
            low = middle
        else:
            high = middle - 1
    return min(low * GRANULARITY, most) if low > first else None


def length_field(start: Start) -> str | None:
    """The field that objective context makes longer: the examples, or the completions (the prompts if those are fixed); None if fixed."""
    names = ("max_completion_length", "max_prompt_length") if start.job.method == "grpo" else ("max_length",)
    return next((name for name in names if start.is_free(name)), None)


def with_length(job: Job, start: Start, length: int) -> Job | None:
    """`job` at `length` tokens in all, by the field that may change; None if nothing is left for it."""
    name = length_field(start)
    if name is None:
        return None
    other = 0
    if job.method == "grpo":
        other = (job.max_prompt_length if name == "max_completion_length" else job.max_completion_length) or 0
    return job.changed(**{name: length - other}) if length > other else None
