"""What a tensor is for, judged from the operation that made it and the library code that asked for it. Worker process only.

Weights, adapters, optimizer state, gradients of parameters and the cache are known by identity and relabelled later (model.py,
optimizers.py, steps.py, generation.py); this is the first guess for everything else.
"""

from __future__ import annotations

import sys
from types import CodeType, FrameType

import torch

from llamamath.planner.trace.stream import Label

_LIBRARIES = ("/transformers/", "/peft/", "/trl/", "/bitsandbytes/", "/torch/optim/", "/torch/nn/utils/", "/accelerate/")
_OURS = "/llamamath/planner/trace/"
_SKIPPED = frozenset({"wrapper", "__call__", "_wrapped_call_impl", "_call_impl", "inner", "forward_wrapper"})
_TILE_WORDS = 32768
"""trl 1.16 kernels/chunked_logprob.py: words of one tile of logits."""
_STATIC_PHASES = ("build", "load")


class Classifier:
    """First labels. `vocab_size` tells logits from hidden states."""

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self._places: dict[CodeType, str | None] = {}

    def label(self, phase: str, operation: str, shape: str, dtype: str) -> Label:
        """The label of a tensor that is being allocated now."""
        where, ours = self._where(sys._getframe(3))
        component = self._component(phase, operation, shape, dtype, where, ours)
        return Label(component=component, operation=operation, where=where, shape=f"{shape} {dtype}".strip())

    def _component(self, phase: str, operation: str, shape: str, dtype: str, where: str, ours: str) -> str:
        if phase in _STATIC_PHASES:
            return "base_weights"
        if dtype == "workspace" or phase == "optimizer" or ours in _TEMPORARY_PLACES:
            return "temporary"
        last = shape.rpartition(",")[2 if not shape.endswith(",)") else 0].strip(" ()")
        if "chunked_logprob" in where and operation not in ("index_select",):
            return "logits"
        if last in (str(self.vocab_size), str(self.vocab_size - 1)) and "," in shape:
            return "logits"
        return "activation"

    def _where(self, frame: FrameType | None) -> tuple[str, str]:
        """(the two innermost places in library code, our own function that stood in for a kernel)."""
        places: list[str] = []
        ours = ""
        while frame is not None and len(places) < 2:
            code = frame.f_code
            if code.co_name == "_engine_run_backward":
                break
            place = self._places.get(code, "")
            if place == "":
                place = self._places[code] = _place(code)
            if place is not None:
                if place.startswith("@"):
                    ours = ours or place[1:]
                else:
                    places.append(f"{place}:{frame.f_lineno}")
            frame = frame.f_back
        if torch._C._current_graph_task_id() != -1:
            node = torch._C._current_autograd_node()
            places.insert(0, f"backward of {node.name()}" if node is not None else "backward")
        return " < ".join(places), ours


_TEMPORARY_PLACES = frozenset({"dequantised_weight", "dequantised_absmax", "integer_product", "cast_weight"})
"""Functions of ours whose buffers exist only while a kernel runs, or are copies that autocast keeps."""


def _place(code: CodeType) -> str | None:
    """`file.py:function` for library code, `@function` for our stand-ins for kernels, None for everything else."""
    path = code.co_filename.replace("\\", "/")
    if _OURS in path:
        return f"@{code.co_name}" if code.co_name in _TEMPORARY_PLACES else None
    if code.co_name in _SKIPPED or not any(library in path for library in _LIBRARIES):
        return None
    return f"{path.rpartition('/')[2]}:{code.co_qualname}"
