"""An Estimate: bytes per component per phase, on the device and on the host, with an interval and a basis. Data only.

Definitions (design.md): `allocated` is what `torch.cuda.max_memory_allocated` would say, `reserved` what `max_memory_reserved` would
say, `device` adds the CUDA context: what `nvidia-smi` would say. `low` and `high` bound `device`; verdicts are taken on `high`.
"""

from __future__ import annotations

from dataclasses import dataclass

COMPONENTS = ("base_weights", "lora", "optimizer", "gradient", "activation", "logits", "kv_cache", "temporary")
"""The papers' five terms (base, LoRA, optimizer, gradients, activations) and the three they leave out."""

PHASES = ("load", "generate", "score", "forward", "backward", "optimizer", "evaluate", "save")
"""Phases of a run in their order. The peak is the maximum over phases, never a sum of maxima."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseMemory:
    """Bytes alive at the worst instant of one phase, by component. The fields add up to `total_bytes`."""

    name: str
    base_weights_bytes: int = 0
    lora_bytes: int = 0
    optimizer_bytes: int = 0
    gradient_bytes: int = 0
    activation_bytes: int = 0
    logits_bytes: int = 0
    kv_cache_bytes: int = 0
    temporary_bytes: int = 0
    instant: str = ""
    """What was running at that instant, for people."""

    def component(self, name: str) -> int:
        """Bytes of one of COMPONENTS."""
        value = getattr(self, f"{name}_bytes")
        assert isinstance(value, int)
        return value

    @property
    def total_bytes(self) -> int:
        """Allocated bytes at the worst instant of this phase."""
        return (
            self.base_weights_bytes
            + self.lora_bytes
            + self.optimizer_bytes
            + self.gradient_bytes
            + self.activation_bytes
            + self.logits_bytes
            + self.kv_cache_bytes
            + self.temporary_bytes
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Peak:
    """The worst phase, and what it means for allocator, device and interval."""

    phase: str
    allocated_bytes: int
    reserved_bytes: int
    device_bytes: int
    low_bytes: int
    high_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HostMemory:
    """RAM of this process at its worst: interpreter and libraries, loading buffers, offloaded tensors. `pinned` is part of `peak`."""

    peak_bytes: int
    pinned_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """The memory of one job. `reasons` say why the interval is as wide as it is; `notes` what the reader should know."""

    phases: tuple[PhaseMemory, ...]
    peak: Peak
    host: HostMemory
    trainable_parameters: int
    total_parameters: int
    basis: str = "formula"
    reasons: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def phase(self, name: str) -> PhaseMemory | None:
        """The phase of that name, if the job has it."""
        return next((phase for phase in self.phases if phase.name == name), None)
