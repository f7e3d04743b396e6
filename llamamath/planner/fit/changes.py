"""What may be changed about a job to save memory: each change with what it costs, the cheapest first. Nothing is estimated here.

The order is by what is given up: nothing; a little speed; much speed; precision; what is trained (length, rank, group); the model; and
last what no training can run yet.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from llamamath.planner.architecture import Architecture
from llamamath.planner.device import Device
from llamamath.planner.job import Job, Lora
from llamamath.planner.search.space import divisors
from llamamath.planner.stack import find_stack

FREE, SPEED, SLOW, PRECISION, EXTENT, ANOTHER_MODEL, NOT_YET = range(7)
"""What a change gives up."""
PAGED = "paged_adamw_8bit"
ADAM = ("adamw_torch", "adamw_torch_fused", "adamw_8bit", "adamw_bnb_8bit", "paged_adamw_32bit", "paged_adamw")


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One step away from a job. change: in words, naming fields and new values. group: changes of one group exclude each other."""

    change: str
    job: Job
    cost: str
    gives_up: int
    group: str


def changes(job: Job, architecture: Architecture, device: Device) -> Iterator[Change]:
    """Every change but those that need a search (lengths) or another configuration (the model), in the order of what they give up."""
    found = [*_free(job, architecture, device), *_speed(job, device), *_precision(job, device), *_extent(job), *_not_yet(job, device)]
    yield from sorted(found, key=lambda change: change.gives_up)


def _free(job: Job, architecture: Architecture, device: Device) -> Iterator[Change]:
    lora, stack = job.lora, find_stack(job.stack)
    if lora is not None and lora.lora_dropout > 0:
        yield Change(
            change="lora.lora_dropout: 0.0",
            job=job.changed(lora=replace(lora, lora_dropout=0.0)),
            cost="no speed; less regularisation, seldom missed with one or two epochs",
            gives_up=FREE,
            group="dropout",
        )
    if job.loss == "full" and job.loss != stack.default_loss:
        yield Change(
            change=f"loss: {stack.default_loss}",
            job=job.changed(loss=stack.default_loss),
            cost="nothing: the same loss, made in pieces",
            gives_up=FREE,
            group="loss",
        )
    elif job.loss == "full" and "liger" in stack.losses and stack.default_loss != "chunked":
        yield Change(
            change="loss: liger",
            job=job.changed(loss="liger"),
            cost="nothing: the same loss; needs liger-kernel",
            gives_up=FREE,
            group="loss",
        )
    if job.kbit_preparation:
        yield Change(
            change="kbit_preparation: false",
            job=job.changed(kbit_preparation=False),
            cost="nothing TRL relies on: it never calls prepare_model_for_kbit_training",
            gives_up=FREE,
            group="kbit",
        )
    if job.optim == "adamw_torch":
        yield Change(
            change="optim: adamw_torch_fused",
            job=job.changed(optim="adamw_torch_fused"),
            cost="nothing: the same optimizer without a copy of the parameters",
            gives_up=FREE,
            group="optim",
        )
    if job.attn_implementation == "eager" and architecture.attn_logit_softcapping is None:
        yield Change(
            change="attn_implementation: sdpa",
            job=job.changed(attn_implementation="sdpa"),
            cost="nothing",
            gives_up=FREE,
            group="attention",
        )
    modern = device.kind == "cuda" and (device.compute_capability is None or device.compute_capability >= (8, 0))
    if modern and job.attn_implementation != "flash_attention_2" and architecture.family != "mllama" and job.dtype != "float32":
        yield Change(
            change="attn_implementation: flash_attention_2",
            job=job.changed(attn_implementation="flash_attention_2"),
            cost="no speed; needs the flash-attn package and compute capability 8.0",
            gives_up=FREE,
            group="attention",
        )
    if job.per_device_eval_batch_size is not None:
        least = job.num_generations if job.method == "grpo" and job.num_generations else 1
        if least < job.per_device_eval_batch_size:
            yield Change(
                change=f"per_device_eval_batch_size: {least}",
                job=job.changed(per_device_eval_batch_size=least),
                cost="slower evaluation",
                gives_up=FREE,
                group="evaluation",
            )
    if job.method == "dpo" and not job.precompute_ref_log_probs:
        yield Change(
            change="precompute_ref_log_probs: true",
            job=job.changed(precompute_ref_log_probs=True),
            cost="one pass over the data before training",
            gives_up=FREE,
            group="reference",
        )


def _speed(job: Job, device: Device) -> Iterator[Change]:
    if not job.gradient_checkpointing:
        yield Change(
            change="gradient_checkpointing: true",
            job=job.changed(gradient_checkpointing=True),
            cost="about a third more time: each layer's forward runs twice",
            gives_up=SPEED,
            group="checkpointing",
        )
    batch = job.per_device_train_batch_size
    for smaller in reversed(divisors(batch)[:-1]):
        factor = batch // smaller
        smaller_job = job.changed(
            per_device_train_batch_size=smaller,
            gradient_accumulation_steps=job.gradient_accumulation_steps * factor,
            steps_per_generation=None if job.steps_per_generation is None else job.steps_per_generation * factor,
        )
        yield Change(
            change=f"per_device_train_batch_size: {smaller}, gradient_accumulation_steps: {smaller_job.gradient_accumulation_steps}",
            job=smaller_job,
            cost="slower where the micro-batch becomes small; the same effective batch",
            gives_up=SPEED,
            group="batch",
        )
    if job.method == "sft" and job.padding:
        yield Change(
            change="padding: false",
            job=job.changed(padding=False),
            cost="no speed; examples are packed into full rows, so they see each other unless flash attention keeps them apart",
            gives_up=SPEED,
            group="padding",
        )
    steps = job.steps_per_generation or job.gradient_accumulation_steps
    if job.method == "grpo":
        for fewer in reversed(divisors(steps)[:-1]):
            if job.gradient_accumulation_steps % fewer == 0:
                yield Change(
                    change=f"steps_per_generation: {fewer}",
                    job=job.changed(steps_per_generation=fewer),
                    cost=f"{steps // fewer} times as many generate calls, each with fewer rows",
                    gives_up=SLOW,
                    group="rollout",
                )
    if job.optim in ADAM and device.kind == "cuda":
        yield Change(
            change=f"optim: {PAGED}",
            job=job.changed(optim=PAGED),
            cost="8-bit moments, which may be paged to RAM",
            gives_up=SPEED,
            group="optim",
        )
    if "checkpoints" not in job.offload and device.kind == "cuda":
        both = "" if job.gradient_checkpointing else "gradient_checkpointing: true, "
        yield Change(
            change=f"{both}offload: [{', '.join((*job.offload, 'checkpoints'))}]",
            job=job.changed(gradient_checkpointing=True, offload=(*job.offload, "checkpoints")),
            cost="0 to 2 % slower from 8k tokens on, more below; pinned RAM for one hidden state per layer",
            gives_up=SLOW,
            group="offload",
        )


def _precision(job: Job, device: Device) -> Iterator[Change]:
    lora = job.lora
    if job.dtype == "float32":
        narrow = "bfloat16" if device.supports_bf16 else "float16"
        yield Change(
            change=f"dtype: {narrow}", job=job.changed(dtype=narrow), cost="weights in half the bytes", gives_up=PRECISION, group="dtype"
        )
    if lora is None:
        return
    if job.quantization != "nf4-dq":
        dtype = find_stack(job.stack).adapter_dtype("nf4-dq") if device.supports_bf16 else lora.dtype
        yield Change(
            change="quantization: nf4-dq",
            job=job.changed(quantization="nf4-dq", lora=replace(lora, dtype=dtype)),
            cost="the frozen weights in 4 bits: a little accuracy, and time to dequantise them",
            gives_up=PRECISION,
            group="quantization",
        )
    if lora.use_dora:
        yield Change(
            change="lora.use_dora: false",
            job=job.changed(lora=replace(lora, use_dora=False)),
            cost="plain LoRA instead of DoRA",
            gives_up=PRECISION,
            group="dora",
        )


def _extent(job: Job) -> Iterator[Change]:
    lora = job.lora
    if lora is None:
        yield Change(
            change="lora: {r: 16}, full fine-tuning given up",
            job=job.changed(lora=Lora(dtype=find_stack(job.stack).adapter_dtype(job.quantization))),
            cost="only adapters are trained",
            gives_up=EXTENT,
            group="lora",
        )
    elif lora.r > 1:
        lower = max(1, lora.r // 2)
        yield Change(
            change=f"lora.r: {lower}",
            job=job.changed(lora=replace(lora, r=lower, lora_alpha=max(1, round(lora.lora_alpha * lower / lora.r)))),
            cost="half the adapter's capacity",
            gives_up=EXTENT,
            group="rank",
        )
    if job.method == "grpo" and (job.num_generations or 0) > 2:
        for group in reversed(divisors(job.num_generations or 0)[:-1]):
            if group < 2:
                continue
            steps = job.steps_per_generation or job.gradient_accumulation_steps
            least = -(-steps * group // (job.num_generations or 1))  # as many prompts a rollout as before
            fewer = next((part for part in divisors(steps) if part >= least and part * job.per_device_train_batch_size % group == 0), steps)
            yield Change(
                change=f"num_generations: {group}, steps_per_generation: {fewer}",
                job=job.changed(num_generations=group, steps_per_generation=fewer),
                cost="fewer completions to compare, so noisier advantages",
                gives_up=EXTENT,
                group="group",
            )
    if job.method == "grpo" and job.beta != 0 and lora is None:
        yield Change(
            change="beta: 0.0",
            job=job.changed(beta=0.0),
            cost="no pull towards the reference model, and no copy of it",
            gives_up=EXTENT,
            group="beta",
        )


def host_changes(job: Job) -> Iterator[Change]:
    """What brings memory back from RAM, for a machine that is short of that."""
    if job.offload:
        yield Change(change="offload: []", job=job.changed(offload=()), cost="more memory on the GPU", gives_up=FREE, group="offload")
    if job.optim.startswith("paged"):
        exact = "adamw_8bit" if "8bit" in job.optim else "adamw_torch_fused"
        yield Change(change=f"optim: {exact}", job=job.changed(optim=exact), cost="more memory on the GPU", gives_up=FREE, group="optim")


def _not_yet(job: Job, device: Device) -> Iterator[Change]:
    if device.kind != "cuda":
        return
    for kind, cost in (
        ("weights", "every layer is brought in from RAM for each pass; needs use_reentrant: true"),
        ("optimizer", "its state lives in RAM and crosses the bus at every step"),
    ):
        if kind in job.offload:
            continue
        moved = (*job.offload, kind)
        reentrant = job.use_reentrant or (kind == "weights" and job.gradient_checkpointing)
        yield Change(
            change=f"offload: [{', '.join(moved)}]{', use_reentrant: true' if reentrant and not job.use_reentrant else ''}",
            job=job.changed(offload=moved, use_reentrant=reentrant),
            cost=cost,
            gives_up=NOT_YET,
            group=f"offload {kind}",
        )
