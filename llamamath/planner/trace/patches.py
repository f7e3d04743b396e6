"""Patches of private parts of torch and transformers that let a CPU-only build run the real code on fake `cuda` tensors.

Process-global, so they live in the worker process only. Each function names the obstacle it removes; canaries.py checks that each
still bites on the installed versions. The obstacles were found by experiment on torch 2.13.0 (CPU) and transformers 5.23.0.
"""

from __future__ import annotations

from typing import Any

import torch
import torch._dynamo  # noqa: F401  - must be imported before anything below is patched: it keeps references of its own
from torch._subclasses import fake_tensor

CPU = torch.device("cpu")


def install_torch() -> None:
    """All patches of torch. Once per process."""
    answer_cpu_to_autograd()
    give_cpu_backend_keys()
    replace_parameters_in_apply()
    allow_cuda_autocast()
    pretend_cuda_queries()


def answer_cpu_to_autograd() -> None:
    """C++ autograd asks a tensor's device through `prim.device` and aborts on `cuda` in a build without it: tell C++ `cpu` there.

    Python's `tensor.device` is another path and keeps saying `cuda`.
    """
    mode, tensor = fake_tensor.FakeTensorMode.__torch_dispatch__, fake_tensor.FakeTensor.__torch_dispatch__.__func__  # type: ignore[attr-defined]
    device_of = torch.ops.prim.device.default

    def by_mode(self: Any, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = mode(self, func, types, args, kwargs)
        return CPU if func is device_of and found.type == "cuda" else found

    def by_tensor(cls: Any, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = tensor(cls, func, types, args, kwargs)
        return CPU if func is device_of and found.type == "cuda" else found

    fake_tensor.FakeTensorMode.__torch_dispatch__ = by_mode  # type: ignore[method-assign]
    fake_tensor.FakeTensor.__torch_dispatch__ = classmethod(by_tensor)  # type: ignore[assignment,method-assign]


class _MakeSubclass:
    """Callable, not a function, so that it is not bound as a method."""

    def __init__(self) -> None:
        self.original = torch.Tensor._make_subclass

    def __call__(self, cls: Any, data: Any, require_grad: bool = False, **options: Any) -> Any:
        keys = options.get("device_for_backend_keys")
        if keys is not None and keys.type == "cuda":
            options["device_for_backend_keys"] = CPU
        return self.original(cls, data, require_grad, **options)


def give_cpu_backend_keys() -> None:
    """No CUDA kernels are registered in a CPU-only build, so `silu_backward` and others would decompose into many tensors.

    Fake tensors get the CPU's dispatch keys instead: +144 MiB (8 %) on a 1B model's peak otherwise.
    """
    torch.Tensor._make_subclass = staticmethod(_MakeSubclass())  # type: ignore[assignment]
    fake_tensor.FakeTensor.is_cuda = property(lambda tensor: tensor.device.type == "cuda")  # type: ignore[assignment,misc]


def replace_parameters_in_apply() -> None:
    """`nn.Module._apply` (behind `.to`, `.half` ...) wants to swap tensors, which fails under weak references: replace parameters."""

    def apply(self: Any, fn: Any, recurse: bool = True) -> Any:
        if recurse:
            for child in self.children():
                child._apply(fn)
        for name, parameter in self._parameters.items():
            if parameter is None:
                continue
            with torch.no_grad():
                new = fn(parameter)
            if new is not parameter:
                self._parameters[name] = torch.nn.Parameter(new.detach(), parameter.requires_grad and new.is_floating_point())
        for name, buffer in self._buffers.items():
            if buffer is not None:
                self._buffers[name] = fn(buffer)
        return self

    torch.nn.Module._apply = apply  # type: ignore[method-assign]


def allow_cuda_autocast() -> None:
    """`torch.autocast("cuda")` disables itself where CUDA is absent. What it would do is applied in functions.py."""
    import torch.cuda.amp.common

    torch.cuda.amp.common.amp_definitely_not_available = lambda: False


def pretend_cuda_queries() -> None:
    """Questions that library code asks of the CUDA runtime, answered as an Ampere card would."""
    torch.cuda.is_bf16_supported = lambda *args, **kwargs: True
    torch.cuda.synchronize = lambda *args, **kwargs: None
    torch.cuda.current_device = lambda: 0


def install_transformers(padded: bool) -> None:
    """transformers takes fake tensors for a compiler's and then always builds a mask: decide as a GPU run would.

    padded: whether the batches have padding, which a real run reads off the mask's values.
    """
    from transformers import masking_utils

    masking_utils.is_tracing = lambda tensor=None: False  # type: ignore[assignment]
    masking_utils.find_packed_sequence_indices = lambda position_ids: None  # type: ignore[assignment]
    masking_utils.fast_all = lambda tensor: not padded


class _Grid:
    """A Triton kernel that allocates nothing: `kernel[grid](...)`."""

    def __getitem__(self, grid: object) -> Any:
        return lambda *args, **kwargs: None


def install_trl(*, cuda: bool = True) -> None:
    """TRL takes its Triton kernels on a CUDA machine; they work in place on tensors that Python code allocated.

    cuda: False takes the path for devices without Triton, to compare with a CPU step.
    """
    import types

    import trl.kernels.chunked_logprob as kernels

    for name in ("_TRITON_AVAILABLE", "_MM_OUT_DTYPE", "_forward_kernel", "_backward_kernel"):
        if not hasattr(kernels, name):
            raise AttributeError(f"trl.kernels.chunked_logprob has no {name}")
    kernels._TRITON_AVAILABLE = cuda
    if not cuda:
        kernels._MM_OUT_DTYPE = False
        return
    kernels._forward_kernel = _Grid()
    kernels._backward_kernel = _Grid()
    kernels.triton = types.SimpleNamespace(cdiv=lambda count, size: -(count // -size))
