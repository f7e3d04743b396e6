"""`llamamath accuracy` without its printing: where the runs are, and what predicts them. Never asks the network for anything."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from llamamath.errors import LlamamathError
from llamamath.planner.accuracy.compare import Accuracy, Predictor, compare
from llamamath.planner.accuracy.jobs import Resolver
from llamamath.planner.accuracy.rows import PublishedRun, read_runs

DATA_VARIABLE = "LLAMAMATH_SHARED_DATA"
"""Environment variable naming the folder of shared data."""
_RUNS = Path("memory", "published_runs.jsonl")


def default_runs() -> Path:
    """The published runs in LLAMAMATH_SHARED_DATA, else in `../shared/data` beside the current folder. The file need not exist."""
    folder = os.environ.get(DATA_VARIABLE)
    return (Path(folder).expanduser() if folder else Path("..", "shared", "data")) / _RUNS


def accuracy_of(path: Path, *, predict: Predictor | None = None, resolve: Resolver | None = None) -> Accuracy:
    """The runs in `path`, predicted (by the memory model, unless `predict` says otherwise) and compared.

    Raises UsageError if the file is missing or unreadable.
    """
    runs = read_runs(path)
    with _offline():
        return compare(
            runs.runs,
            predict or _memory_model(),
            resolve=resolve or _known_models(),
            capacity=card_capacity,
            malformed=len(runs.malformed),
        )


@contextlib.contextmanager
def _offline() -> Iterator[None]:
    """No request to the hub: a model that is neither a profile nor in the local cache counts as not described."""
    before = os.environ.get("HF_HUB_OFFLINE")
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["HF_HUB_OFFLINE"]
        else:
            os.environ["HF_HUB_OFFLINE"] = before


def _memory_model() -> Predictor:
    from llamamath.planner.memory import estimate

    return lambda job, architecture, conditions: estimate(job, architecture, conditions=conditions)


def _known_models() -> Resolver:
    from llamamath.planner.model_files.config_file import resolve_model

    return resolve_model


def card_capacity(run: PublishedRun) -> int | None:
    """What a process could use on the run's card: as published, else what the profile of the card by that name says, else None."""
    if run.capacity_bytes is not None or run.gpu is None:
        return run.capacity_bytes
    from llamamath.profiles.gpu_names import look_up_gpu, split_name

    try:
        gpu, remarks = look_up_gpu(run.gpu)
    except LlamamathError:
        return None
    several = bool(remarks) and split_name(run.gpu).size_gb is None  # the name fits cards of several sizes
    return None if several else gpu.usable_bytes
