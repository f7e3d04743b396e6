"""Follows every storage of the fake device: which operation made it, and when the last tensor on it went. Worker process only.

Source of the method: a TorchDispatchMode sees every operation below autograd; a weak reference to each output's untyped storage tells
when it dies, which is when the caching allocator would get the block back.
"""

from __future__ import annotations

import weakref
from array import array
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode

from llamamath.planner.trace.components import Classifier
from llamamath.planner.trace.stream import Label, Mark, Stream

aten = torch.ops.aten
CPU = torch.device("cpu")
Emulation = Callable[..., Any]
Workspace = Callable[[tuple[Any, ...], Any], int]


class StorageTracker(TorchDispatchMode):
    """Records the event stream. `device` is the kind of device whose storages count: `cuda`, or `cpu` for a real step."""

    def __init__(self, classifier: Classifier, *, device: str = "cuda") -> None:
        super().__init__()
        self.classifier = classifier
        self.device = device
        self.reset()
        self.emulations: dict[str, Emulation] = {}
        """Operations whose CUDA implementation allocates more than their fake one shows: name -> replacement."""
        self.workspaces: dict[str, Workspace] = {}
        """Operations whose CUDA kernel takes a buffer of its own: name -> bytes, from arguments and result."""
        self.accumulate: Callable[[tuple[Any, ...], Mapping[str, Any]], Any] | None = None
        """Stands in for the engine's in-place accumulation (accumulation.py)."""
        self.cpu_wanted = 0
        """Above 0 while Python code asked for a CPU tensor by name."""

    def reset(self) -> None:
        """Forget everything recorded."""
        self.phase = "build"
        self.entries = array("q")
        self.marks: list[Mark] = [Mark(position=0, phase="build")]
        self.known: list[Label] = []
        self.labels: dict[Label, int] = {}
        self.label_of = array("i")
        self.alive: dict[int, tuple[int, Any]] = {}
        """storage address -> (id, weak reference)"""
        self.operations: Counter[str] = Counter()

    # -- phases and labels

    def mark(self, phase: str, detail: str = "") -> None:
        """From here on the run is in `phase`."""
        self.phase = phase
        self.marks.append(Mark(position=len(self.entries), phase=phase, detail=detail))

    def relabel(self, tensor: torch.Tensor, component: str) -> None:
        """Say what a tensor that is alive turned out to be (a gradient, optimizer state, a cache)."""
        found = self.alive.get(tensor.untyped_storage()._cdata)
        if found is None:
            return
        old = self.known[self.label_of[found[0] - 1]]
        if old.component != component:
            new = Label(component=component, operation=old.operation, where=old.where, shape=old.shape)
            self.label_of[found[0] - 1] = self._intern(new)

    def _intern(self, label: Label) -> int:
        index = self.labels.get(label)
        if index is None:
            index = self.labels[label] = len(self.known)
            self.known.append(label)
        return index

    def identity(self, tensor: torch.Tensor) -> int | None:
        """The id of the tensor's storage, if it is alive on the tracked device."""
        found = self.alive.get(tensor.untyped_storage()._cdata)
        return found[0] if found else None

    def stream(self) -> Stream:
        """Everything recorded so far."""
        return Stream(entries=self.entries, marks=tuple(self.marks), labels=tuple(self.known), label_of=self.label_of)

    # -- recording

    def track(self, tensor: torch.Tensor, operation: str) -> None:
        """Count the tensor's storage, if it is new and on the device."""
        if tensor.device.type != self.device:
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.alive:
            return
        size = storage.nbytes()
        if size == 0:
            return
        identity = self._allocate(size, operation, str(tuple(tensor.shape)), str(tensor.dtype).removeprefix("torch."))
        self.alive[key] = (identity, weakref.ref(storage, partial(self._freed, key)))

    def workspace(self, size: int, operation: str) -> None:
        """A buffer that a kernel takes and gives back inside one operation, beside its outputs."""
        if size > 0:
            self.entries.append(-self._allocate(size, operation, "", "workspace"))

    def _allocate(self, size: int, operation: str, shape: str, dtype: str) -> int:
        label = self.classifier.label(self.phase, operation.removeprefix("aten::").partition(".")[0], shape, dtype)
        self.label_of.append(self._intern(label))
        self.entries.append(size)
        return len(self.label_of)

    def _freed(self, key: int, _: object) -> None:
        found = self.alive.pop(key, None)
        if found is not None:
            self.entries.append(-found[0])

    # -- the mode

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.prim.device.default:
            return func(*args, **kwargs)
        name = func.name()
        self.operations[name] += 1
        if self.device == "cuda":
            if func is aten._to_copy.default and isinstance(args[0], FakeTensor) and _spurious(args[0], kwargs):
                return aten.alias.default(args[0])
            if kwargs.get("device") == CPU and not self.cpu_wanted:
                kwargs = {**kwargs, "device": torch.device("cuda", 0)}
            emulation = self.emulations.get(name)
            if emulation is not None:
                with self:
                    return emulation(*args, **kwargs)
            if self.accumulate is not None and func is aten.add.Tensor:
                done = self.accumulate(args, kwargs)
                if done is not None:
                    return done
        out = func(*args, **kwargs)
        self._outputs(out, name)
        if name in self.workspaces:
            self.workspace(self.workspaces[name](args, out), name)
        return out

    def _outputs(self, out: Any, name: str) -> None:
        if isinstance(out, torch.Tensor):
            self.track(out, name)
        elif isinstance(out, tuple | list):
            for item in out:
                self._outputs(item, name)


def _spurious(tensor: torch.Tensor, kwargs: Mapping[str, Any]) -> bool:
    """A copy to the device the tensor is on already: C++ believes it to be elsewhere (patches.answer_cpu_to_autograd)."""
    dtype, device = kwargs.get("dtype") or tensor.dtype, kwargs.get("device")
    return dtype == tensor.dtype and device is not None and device.type == tensor.device.type
