"""A whole traced run: load, rollout, scoring, one step, evaluation. Worker process only."""

from __future__ import annotations

import gc
import time
from array import array
from collections.abc import Callable
from typing import Any

import torch

from llamamath.planner.trace import patches
from llamamath.planner.trace.accounting import worst_instants
from llamamath.planner.trace.attention import register_flash2
from llamamath.planner.trace.canaries import Canaries
from llamamath.planner.trace.components import Classifier
from llamamath.planner.trace.functions import GpuFunctions, fake_device
from llamamath.planner.trace.generation import Generation
from llamamath.planner.trace.model import Built, build
from llamamath.planner.trace.optimizers import PagedMemory, create_state, make_optimizer, state_tensors
from llamamath.planner.trace.quantized import teach_peft_about_fake_weights
from llamamath.planner.trace.request import TraceRequest
from llamamath.planner.trace.result import TraceResult, cublas_workspaces
from llamamath.planner.trace.steps import Steps
from llamamath.planner.trace.stream import Mark, Stream
from llamamath.planner.trace.tracker import StorageTracker

Progress = Callable[[str], None]


def run(request: TraceRequest, versions: dict[str, str], progress: Progress = lambda phase: None) -> TraceResult:
    """Trace one request. The process is spent afterwards: its torch stays patched."""
    started = time.monotonic()
    gc.freeze()  # the libraries' own objects need not be looked through again and again
    text = request.config.get("text_config", request.config)
    tracker = StorageTracker(Classifier(text["vocab_size"]))
    patches.install_torch()
    patches.install_transformers(request.job.padding)
    patches.install_trl(cuda=not request.cpu_kernels)
    register_flash2(request.job.padding)
    teach_peft_about_fake_weights()
    with fake_device(request, tracker) as functions:
        canaries = Canaries(tracker, functions).run()
        tracker.reset()
        functions.attention.picked.clear()
        progress("load")
        built = build(request, tracker)
        paged = PagedMemory()
        optimizer = make_optimizer(request.job.optim, built, paged)
        updated = _updated(request, built)
        create_state(optimizer, updated)
        gc.collect()
        for tensor in state_tensors(optimizer):
            tracker.relabel(tensor, "optimizer")
        _steps(request, built, optimizer, updated, tracker, functions, progress)
        stream = without_passing_builds(tracker.stream())
    return TraceResult(
        stream=stream,
        instants=worst_instants(stream),
        unseen=() if request.cpu_kernels else (cublas_workspaces(request.capability),),
        versions=versions,
        trainable_parameters=sum(parameter.numel() for parameter in built.trainable),
        total_parameters=_count(built.base),
        paged_bytes=paged.bytes,
        notes=_notes(functions),
        operations=sum(tracker.operations.values()),
        seconds=round(time.monotonic() - started, 2),
        canaries=canaries,
    )


def _updated(request: TraceRequest, built: Built) -> list[Any]:
    """Parameters that get a gradient, hence optimizer state: all, but for an image tower and its cross-attention layers on text alone."""
    if built.config.model_type != "mllama" or request.job.num_images:
        return built.trainable
    crossing = [f"language_model.layers.{index}." for index in built.config.text_config.cross_attention_layers]
    unused = ("vision_model.", "multi_modal_projector.", *crossing)  # MllamaTextModel.forward skips these layers without an image
    named = built.model.named_parameters()
    return [parameter for name, parameter in named if parameter.requires_grad and not any(part in name for part in unused)]


def _steps(
    request: TraceRequest,
    built: Built,
    optimizer: Any,
    updated: list[Any],
    tracker: StorageTracker,
    functions: GpuFunctions,
    progress: Progress,
) -> None:
    job = request.job

    def mark(phase: str, detail: str) -> None:
        progress(phase)
        tracker.mark(phase, detail)

    def scored(count: int) -> None:
        functions.scored = count

    def label_gradients() -> None:
        for parameter in built.trainable:
            if parameter.grad is not None:
                tracker.relabel(parameter.grad, "gradient")

    def earlier() -> None:
        """Accumulated gradients: every parameter's, as the first micro-batch leaves them."""
        tracker.mark("between")
        for parameter in updated:
            parameter.grad = torch.empty_like(parameter)
        label_gradients()

    steps = Steps(request, built, mark, scored)
    steps.after_backward, steps.earlier = label_gradients, earlier
    generation = Generation(request, built, tracker, functions)
    rollout = None
    if job.method == "grpo" and job.rollout.engine == "transformers":
        rollout = lambda: generation.run(job.generation_batch_size)  # noqa: E731
    tracker.mark("between")
    steps.train(optimizer, generate=rollout)
    if job.per_device_eval_batch_size is not None:
        rows = job.per_device_eval_batch_size
        steps.evaluate((lambda: generation.run(rows, "evaluate")) if rollout else None)
    mark("save", "tensors copied to the host one by one")
    tracker.mark("teardown")


def _count(base: torch.nn.Module) -> int:
    """Parameters of the model itself: a packed weight counts as the matrix it stands for."""
    total = 0
    for name, parameter in base.named_parameters():
        if "lora_" not in name:
            state = getattr(parameter, "quant_state", None)
            total += state.shape.numel() if state is not None else parameter.numel()
    return total


def _notes(functions: GpuFunctions) -> tuple[str, ...]:
    picked = ", ".join(f"{kernel} {count} times" for kernel, count in sorted(functions.attention.picked.items()))
    return (f"attention kernels: {picked}",) if picked else ()


def without_passing_builds(stream: Stream) -> Stream:
    """The stream without tensors that came and went while the model was put together: a real run loads, it does not rebuild.

    `load` stays as it is: there, passing tensors are real.
    """
    allocated: list[int] = []
    phase_of: list[str] = []
    dropped: set[int] = set()
    for start, end, mark in stream.phases():
        for position in range(start, end):
            entry = stream.entries[position]
            if entry > 0:
                allocated.append(position)
                phase_of.append(mark.phase)
            elif mark.phase == "build" and phase_of[-entry - 1] == "build":
                dropped.add(-entry)
    renumbered: dict[int, int] = {}
    entries, label_of = array("q"), array("i")
    marks = iter(stream.marks)
    pending = next(marks, None)
    kept_marks: list[Mark] = []
    identity = 0
    for position in range(len(stream.entries) + 1):
        while pending is not None and pending.position == position:
            kept_marks.append(Mark(position=len(entries), phase=pending.phase, detail=pending.detail))
            pending = next(marks, None)
        if position == len(stream.entries):
            break
        entry = stream.entries[position]
        if entry > 0:
            identity += 1
            if identity in dropped:
                continue
            label_of.append(stream.label_of[identity - 1])
            renumbered[identity] = len(label_of)
            entries.append(entry)
        elif -entry not in dropped:
            entries.append(-renumbered[-entry])
    return Stream(entries=entries, marks=tuple(kept_marks), labels=stream.labels, label_of=label_of)
