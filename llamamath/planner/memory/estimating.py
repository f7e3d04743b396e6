"""From a Job to the bytes of each phase: static memory plus the worst instant of every walk at the job's batch and lengths."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

from llamamath.planner.architecture import Architecture
from llamamath.planner.estimate import COMPONENTS, PHASES, PhaseMemory
from llamamath.planner.job import Job, Lora
from llamamath.planner.memory import from_job
from llamamath.planner.memory.ledger import Instant
from llamamath.planner.memory.polynomial import evaluate
from llamamath.planner.memory.settings import Settings
from llamamath.planner.memory.static import OptimizerMemory, Static, optimizer_memory, static_memory
from llamamath.planner.memory.walk import Walked, walked

CUBLAS_WORKSPACES = 2
"""cuBLAS handles with a workspace in the caching allocator: the forward's thread and autograd's."""
CUBLAS_WORKSPACE_BYTES = 8_519_680
"""torch's default CUBLAS_WORKSPACE_CONFIG `:4096:2:16:8`: 2 * 4096 KiB + 8 * 16 KiB (seen on A100s in published runs)."""
LARGE_CUBLAS_WORKSPACE_BYTES = 32 * 2**20
"""The default on compute capability 9.0 and 10.0 (torch `ATen/cuda/CublasHandlePool.cpp`, parseChosenWorkspaceSize)."""
Capability = tuple[int, int]


def workspace_bytes(capability: Capability | None) -> int:
    """cuBLAS workspaces on a card of that compute capability (None: not known, taken as any but 9.0 and 10.0)."""
    return CUBLAS_WORKSPACES * (LARGE_CUBLAS_WORKSPACE_BYTES if capability in ((9, 0), (10, 0)) else CUBLAS_WORKSPACE_BYTES)


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """Allocated bytes by phase, and the parts that the interval is reasoned from."""

    phases: tuple[PhaseMemory, ...]
    static: Static
    optimizer: OptimizerMemory
    settings: Settings
    largest_tensor_bytes: int
    """The biggest single tensor of the training step: the size of hole the allocator may fail to find."""
    streamed_bytes: int
    """Weights kept in host memory and brought in layer by layer."""
    notes: tuple[str, ...]

    @property
    def peak(self) -> PhaseMemory:
        """The worst phase."""
        return max(self.phases, key=lambda phase: phase.total_bytes)


@dataclass(frozen=True, slots=True)
class _Setting:
    """What all phases of a job share."""

    settings: Settings
    static: Static
    optimizer: OptimizerMemory
    walk: Walked
    streamed_bytes: int
    state_bytes: int
    """Optimizer state on the device."""
    gradient_bytes: int
    """Gradients of earlier micro-batches."""


def _setting(job: Job, architecture: Architecture) -> _Setting:
    return _structure(architecture, from_job.settings_of(job, architecture), job.lora, job.optim, job.offload)


@lru_cache(maxsize=2048)
def _structure(architecture: Architecture, settings: Settings, lora: Lora | None, optim: str, offload: tuple[str, ...]) -> _Setting:
    """All that jobs of one structure share: one look-up per job, since hashing these is what a search would spend its time on."""
    static = static_memory(architecture, settings, lora)
    optimizer = optimizer_memory(optim, static)
    streamed = 0
    if "weights" in offload:
        streamed = static.layer_bytes - 2 * static.layer_bytes // architecture.num_hidden_layers
        static = replace(static, base_bytes=static.base_bytes - streamed)
    state = 0 if "optimizer" in offload else optimizer.state_bytes
    gradients = static.gradient_bytes if settings.accumulating else 0
    return _Setting(settings, static, optimizer, walked(architecture, settings), streamed, state, gradients)


def _passes(
    job: Job, architecture: Architecture, setting: _Setting, training: from_job.Values
) -> list[tuple[str, str, from_job.Values, int]]:
    """The walked passes of a job: (phase, pass, values of the monomials, bytes of gradients alive beside it)."""
    held = setting.gradient_bytes
    passes = []
    if job.method == "grpo" and job.rollout.engine == "transformers":
        passes.append(("generate", "prefill", from_job.prefill_values(job, architecture), 0))
        passes.append(("generate", "decode", from_job.decode_values(job, architecture), 0))
    if "score" in setting.walk.instants:
        passes.append(("score", "score", training, 0 if job.method == "grpo" else held))
    passes += [("forward", "forward", training, held), ("backward", "backward", training, held)]
    if job.per_device_eval_batch_size is not None:
        passes.append(("evaluate", "evaluate", from_job.evaluation_values(job, architecture), 0))
    return passes


def allocated_peak(job: Job, architecture: Architecture, capability: Capability | None = None) -> tuple[int, int]:
    """Allocated bytes of the worst phase, and the largest single tensor: `device_memory` without its breakdown, for searches."""
    setting = _setting(job, architecture)
    static = setting.static
    base = static.base_bytes + static.lora_bytes + setting.state_bytes + workspace_bytes(capability)
    walks = setting.walk.instants
    training = from_job.training_values(job, architecture)
    passes = _passes(job, architecture, setting, training)
    peak = max(held + max(evaluate(instant.total, values) for instant in walks[name]) for _, name, values, held in passes)
    peak = base + max(peak, static.gradient_bytes + setting.optimizer.step_bytes)
    largest = max(evaluate(terms, training) for terms in setting.walk.largest)
    return max(peak, _load(static, setting.settings).total_bytes), largest


def device_memory(job: Job, architecture: Architecture, capability: Capability | None = None) -> DeviceMemory:
    """Every phase of `job` on the device.

    peak(phase) = base + adapters + optimizer state [+ gradients of earlier micro-batches] + max over instants of the phase. The state is
    there from the second step on, so forward and backward are counted with it.
    """
    setting = _setting(job, architecture)
    static, optimizer = setting.static, setting.optimizer
    workspace = workspace_bytes(capability)
    always = {
        "base_weights": static.base_bytes,
        "lora": static.lora_bytes,
        "optimizer": setting.state_bytes,
        "temporary": workspace,
    }
    training = from_job.training_values(job, architecture)
    phases = {"load": _load(static, setting.settings)}
    for phase, name, values, held in _passes(job, architecture, setting, training):
        found = _phase(phase, setting.walk.instants[name], values, always | {"gradient": held})
        if phase not in phases or found.total_bytes > phases[phase].total_bytes:
            phases[phase] = found
    resting = PhaseMemory(
        name="save",
        base_weights_bytes=static.base_bytes,
        lora_bytes=static.lora_bytes,
        optimizer_bytes=setting.state_bytes,
        temporary_bytes=workspace,
        instant="tensors copied to the host one by one",
    )
    phases["optimizer"] = replace(
        resting,
        name="optimizer",
        gradient_bytes=static.gradient_bytes,
        temporary_bytes=optimizer.step_bytes + workspace,
        instant=f"{job.optim} step",
    )
    phases["save"] = resting
    return DeviceMemory(
        phases=tuple(phases[name] for name in PHASES if name in phases),
        static=static,
        optimizer=optimizer,
        settings=setting.settings,
        largest_tensor_bytes=max(evaluate(terms, training) for terms in setting.walk.largest),
        streamed_bytes=setting.streamed_bytes,
        notes=_notes(job, architecture),
    )


def _notes(job: Job, architecture: Architecture) -> tuple[str, ...]:
    """What a reader of the estimate should know about this job."""
    notes = []
    if job.attn_implementation == "sdpa" and architecture.attn_logit_softcapping is not None:
        notes.append("transformers refuses sdpa for a model with attention soft-capping; estimated with eager attention")
    if job.attn_implementation == "flash_attention_2" and architecture.family == "mllama":
        notes.append("transformers refuses flash_attention_2 for mllama; estimated with sdpa")
    if job.rollout.engine == "vllm":
        notes.append("vLLM's own memory (its gpu_memory_utilization share of the card) is not in this estimate")
    if "weights" in job.offload and job.gradient_checkpointing and not job.use_reentrant:
        notes.append("streamed weights need reentrant checkpointing: bitsandbytes keeps each packed weight alive in its graph otherwise")
    if job.num_images and architecture.vision is None:
        notes.append("num_images is ignored: this model has no image tower")
    if job.loss == "liger" and job.stack == "trl-1.16":
        notes.append("TRL 1.16 turns Liger's fused loss off; estimated with its chunked loss")
    return tuple(notes)


def _load(static: Static, settings: Settings) -> PhaseMemory:
    """Loading: each weight reaches the device in its load dtype; a quantised one is there twice for a moment."""
    passing = static.largest_weight_bytes if settings.quantized else 0
    return PhaseMemory(name="load", base_weights_bytes=static.base_bytes, temporary_bytes=passing, instant="the largest weight, on its way")


def worst(candidates: tuple[Instant, ...], values: from_job.Values) -> Instant:
    """The largest instant at these values of the monomials."""
    return max(candidates, key=lambda instant: evaluate(instant.total, values))


def _phase(name: str, candidates: tuple[Instant, ...], values: from_job.Values, static: dict[str, int]) -> PhaseMemory:
    instant = worst(candidates, values)
    sizes = {
        f"{component}_bytes": evaluate(terms, values) + static.get(component, 0)
        for component, terms in zip(COMPONENTS, instant.components, strict=True)
    }
    return PhaseMemory(name=name, instant=instant.where, **sizes)
