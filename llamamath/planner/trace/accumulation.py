"""The autograd engine's in-place accumulation of gradients, which tensor subclasses never get. Worker process only.

torch/csrc/autograd/input_buffer.cpp, `accumulate`: when a second gradient arrives for the same input, the engine adds it *into* the one
it holds if that is a plain dense tensor with no other reference to it or to its storage; else it makes a new tensor. Fake tensors are
subclasses, so they always pay the new tensor, a whole copy of the embedding for a model with tied weights. Here the addition is
recognised and, under the engine's own conditions, done without a new tensor.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import FrameType
from typing import Any

import torch

_MODE_FRAMES = frozenset({"__torch_dispatch__", "__call__", "_fn", "inner"})
"""Frames of the dispatch mode itself, between an operation and whoever called it (torch/_compile.py wraps the mode in `inner`)."""
_HELD_BY_ENGINE = 4
"""References to a gradient that only the engine's buffer holds, as seen from a dispatch mode: the buffer, the call's arguments and the
Python object's own (measured; canaries.py checks it)."""
_ONE_TENSOR = 2
"""References to its storage: the tensor and the Python storage object that the tracker looks at."""


class Accumulation:
    """Called on every `add`; answers the sum where the engine would have added in place, else None."""

    def __init__(self) -> None:
        self.in_place = 0
        self.out_of_place = 0

    def __call__(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> torch.Tensor | None:
        if kwargs or len(args) != 2 or not _called_by_engine():
            return None
        held, new = args
        if not isinstance(held, torch.Tensor) or not isinstance(new, torch.Tensor) or held.shape != new.shape or torch.is_grad_enabled():
            return None
        if not _repurposable(held):
            self.out_of_place += 1
            return None
        self.in_place += 1
        return held


def _repurposable(held: torch.Tensor) -> bool:
    """input_buffer.cpp can_accumulate_inplace: dense, and the last reference to the tensor and to its storage."""
    if held._is_view() or held._use_count() != _HELD_BY_ENGINE or not _is_dense(held):
        return False
    return bool(torch._C._storage_Use_Count(held.untyped_storage()._cdata) == _ONE_TENSOR)


def _is_dense(tensor: torch.Tensor) -> bool:
    """Non-overlapping and dense: contiguous in some order of its dimensions."""
    if tensor.is_contiguous():
        return True
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


def _called_by_engine() -> bool:
    """Whether the innermost Python frame outside the dispatch mode is the one that started the engine: no Python backward is running."""
    if torch._C._current_graph_task_id() == -1:
        return False
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and frame.f_code.co_name in _MODE_FRAMES:
        frame = frame.f_back
    return frame is not None and frame.f_code.co_name == "_engine_run_backward"
