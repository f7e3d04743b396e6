"""What a GPU run does above the dispatcher, for fake tensors: the choice of kernels, autocast, and answers that depend on data.

Worker process only.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack

from llamamath.planner.trace.accumulation import Accumulation
from llamamath.planner.trace.attention import WORKSPACES, Attention
from llamamath.planner.trace.autocast import Autocast
from llamamath.planner.trace.bitsandbytes_ops import emulations
from llamamath.planner.trace.request import TraceRequest
from llamamath.planner.trace.tracker import StorageTracker

_MOVES_TO_CPU = frozenset({"cpu", "tolist", "numpy", "tensor"})


class _Dropout(torch.autograd.Function):
    """CUDA's fused dropout keeps a mask of one byte per element (native_dropout); the CPU's keeps noise in the input's dtype."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(torch.empty(x.shape, dtype=torch.bool, device=x.device))
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        ctx.saved_tensors  # noqa: B018 - unpacking is what releases them
        return torch.empty_like(grad)


class GpuFunctions(TorchFunctionMode):
    """`scored`: rows that a data-dependent `x[mask]` keeps. `truth`: what `bool(tensor)` answers."""

    def __init__(self, tracker: StorageTracker, attention: Attention, *, cpu_kernels: bool = False) -> None:
        super().__init__()
        self.tracker = tracker
        self.attention = attention
        self.autocast = Autocast()
        self.cpu_kernels = cpu_kernels
        self.scored: int | None = None
        self.truth = True

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not _wants_cpu(func, args, kwargs):
            return self._call(func, args, kwargs)
        self.tracker.cpu_wanted += 1
        try:
            return self._call(func, args, kwargs)
        finally:
            self.tracker.cpu_wanted -= 1

    def _call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if func is torch.Tensor.to and isinstance(args[0], FakeTensor):
            return _to(func, args, kwargs)
        if func is torch.Tensor.cuda:
            return args[0]
        if func is torch.as_tensor and isinstance(args[0], torch.Tensor) and len(args) == 1 and not kwargs:
            return args[0]
        if func is torch.Tensor.item:
            return 1.0 if args[0].is_floating_point() else 1
        if func is torch.Tensor.__bool__:
            return self.truth
        if func is torch.Tensor.__getitem__ and isinstance(args[1], torch.Tensor) and args[1].dtype == torch.bool:
            return self._select(args[0], args[1])
        args, kwargs = self.autocast.arguments(func, args, kwargs)
        if func in (F.dropout, torch.dropout) and not self.cpu_kernels and isinstance(args[0], FakeTensor):
            return _dropout(*args, **kwargs)
        if func is F.scaled_dot_product_attention:
            return self.attention(*args, **kwargs)
        return func(*args, **kwargs)

    def _select(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """`x[mask]`: nonzero's int64 index, then a gather of as many rows as the job scores."""
        count = min(self.scored or mask.numel(), mask.numel())
        flat = x.reshape(-1, *x.shape[mask.dim() :])
        return flat.index_select(0, torch.zeros(count, dtype=torch.int64, device=x.device))


def _wants_cpu(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether Python code asked for a result on the CPU by name."""
    name = getattr(func, "__name__", "")
    if name in _MOVES_TO_CPU:
        return True
    device = kwargs.get("device")
    if device is not None and torch.device(device).type == "cpu":
        return True
    return name == "to" and any(
        arg == "cpu" or (isinstance(arg, torch.device) and arg.type == "cpu") for arg in args[1:] if not isinstance(arg, torch.Tensor)
    )


def _to(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """`Tensor.to` without the copy that C++ would make because it believes the tensor to be on the CPU."""
    tensor = args[0]
    if len(args) > 1 and isinstance(args[1], torch.Tensor):
        device, dtype = args[1].device, args[1].dtype
    else:
        given = {name: value for name, value in kwargs.items() if name in ("device", "dtype", "non_blocking")}
        device, dtype = torch._C._nn._parse_to(*args[1:], **given)[:2]
    copy = kwargs.get("copy", False) or (len(args) > 4 and args[4])
    if copy or (device is not None and device.type != tensor.device.type):
        return func(*args, **kwargs)
    return tensor if dtype is None or dtype == tensor.dtype else func(tensor, dtype)


def _dropout(x: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False, **kwargs: Any) -> torch.Tensor:
    training = kwargs.get("train", training)
    return x if not training or p == 0 else _Dropout.apply(x)  # type: ignore[no-any-return,no-untyped-call]


@contextlib.contextmanager
def fake_device(request: TraceRequest, tracker: StorageTracker) -> Iterator[GpuFunctions]:
    """Within it, tensors are fake and on `cuda`, and `tracker` follows them. patches.py must be installed."""
    attention = Attention(request.capability, native=request.cpu_kernels)
    functions = GpuFunctions(tracker, attention, cpu_kernels=request.cpu_kernels)
    tracker.accumulate = Accumulation()
    tracker.emulations = emulations(tracker, request)
    tracker.workspaces = {} if request.cpu_kernels else dict(WORKSPACES)
    run_backward, clear_cache = torch.autograd._engine_run_backward, torch.clear_autocast_cache

    def run_with_modes(*args: Any, **kwargs: Any) -> Any:
        """`Tensor.backward` pops the function modes, so a checkpoint's recompute would differ from its forward: put them back."""
        if functions in _get_current_function_mode_stack():
            return run_backward(*args, **kwargs)
        with torch.device("cuda"), functions:
            return run_backward(*args, **kwargs)

    def clear() -> None:
        functions.autocast.cache.clear()
        clear_cache()

    torch.autograd._engine_run_backward = run_with_modes
    torch.clear_autocast_cache = clear
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), torch.device("cuda"), tracker, functions:
            yield functions
    finally:
        torch.autograd._engine_run_backward = run_backward
        torch.clear_autocast_cache = clear_cache
