"""From a published run to the Job that describes it, or to the reason why no Job does.

Rules only: nothing here looks at a row's id or at its figure, so the same rules hold for rows nobody has seen yet. What a row does not
say, and its software does not settle, leaves the row out (`Excluded`); what merely differs from our description becomes a caveat.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from llamamath.errors import LlamamathError
from llamamath.planner.accuracy.fields import (
    Measure,
    Missing,
    Precision,
    read_attention,
    read_checkpointing,
    read_length_kind,
    read_lengths,
    read_measure,
    read_optimizer,
    read_precision,
    read_quantization,
    read_targets,
)
from llamamath.planner.accuracy.models import own_architecture, own_modules
from llamamath.planner.accuracy.orders import Sampling, orders
from llamamath.planner.accuracy.rows import PublishedRun
from llamamath.planner.accuracy.software import Software, software_of
from llamamath.planner.architecture import Architecture
from llamamath.planner.job import Job, Lora
from llamamath.planner.memory import Conditions

Resolver = Callable[[str], Architecture]

GROUPS = {
    "A": "same code path: transformers' own code in a version we model, every batch of the stated length",
    "B": "Hugging Face code in another version, with a model's own code or fused kernels; every batch of the stated length",
    "C": "Hugging Face code; lengths vary, the stated one is reached or only bounds them",
    "D": "other training code (LitGPT, torchtune, axolotl, Unsloth); length stated or reached",
    "E": "other training code; the stated length is only a bound",
}
"""How far a run's software and lengths are from what the planner describes."""

_LORA_SETTINGS = frozenset(
    {"peft_type", "task_type", "r", "target_modules", "lora_alpha", "lora_dropout", "bias", "init_lora_weights", "use_rslora", "use_dora"}
    | {"qalora_group_size", "base_model_name_or_path", "revision", "inference_mode", "megatron_core", "fan_in_fan_out"}
)  # settings of PEFT's LoraConfig that change no size beyond what Lora carries; any other that is set names a variant
_PLAIN_INITIALISATIONS = ("gaussian", "pissa", "olora", "loftq", "orthogonal", "eva", "corda")


@dataclass(frozen=True, slots=True, kw_only=True)
class MappedRun:
    """A published run as a Job. `outcome` is `measured`, `oom` (nothing measured, it did not fit) or `fits` (only that it did)."""

    run: PublishedRun
    job: Job
    architecture: Architecture
    measure: str
    measured_bytes: int | None
    outcome: str
    group: str
    software: str
    length_kind: str
    caveats: tuple[str, ...]
    conditions: Conditions
    """What of the run is not in its job, except its card."""

    @property
    def model(self) -> str:
        """The model as published."""
        return self.run.model or ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Excluded:
    """A run no Job describes: the class of reason, and what exactly."""

    run: PublishedRun
    reason: str
    detail: str = ""


def row_to_job(run: PublishedRun, resolve: Resolver) -> MappedRun | Excluded:
    """The Job, architecture, figure and caveats of a published run; or why there is none. `resolve` names a model's Architecture."""
    mapped = _map(run, resolve)
    return Excluded(run=run, reason=mapped.reason, detail=mapped.detail) if isinstance(mapped, Missing) else mapped


def _map(run: PublishedRun, resolve: Resolver) -> MappedRun | Missing:
    if run.gpu_count != 1:
        return Missing(reason="more than one GPU" if run.gpu_count else "number of GPUs not stated")
    method = _method(run)
    measure = read_measure(run)
    software = software_of(run)
    for part in (method, measure, _variant(run)):
        if isinstance(part, Missing):
            return part
    if isinstance(software, str):
        return Missing(reason=software, detail=run.framework)
    assert isinstance(method, tuple) and isinstance(measure, Measure)
    outcome = "oom" if run.oom else "measured" if run.measured_bytes else "fits" if "fits" in run.measure.lower() else None
    if outcome is None:
        return Missing(reason="no figure")
    found = _architecture(run, software, resolve)
    job = _job(run, software, *method)
    for result in (found, job):
        if isinstance(result, Missing):
            return result
    assert isinstance(found, Architecture) and isinstance(job, tuple)
    if job[0].lora is not None:
        targets = own_modules(found, job[0].lora.target_modules)
        job = (job[0].changed(lora=replace(job[0].lora, target_modules=targets)), job[1])
    length_kind = read_length_kind(run)
    return MappedRun(
        run=run,
        job=job[0],
        architecture=found,
        measure=measure.kind,
        measured_bytes=run.measured_bytes if outcome == "measured" else None,
        outcome=outcome,
        group=_group(software, length_kind),
        software=software.name,
        length_kind=length_kind,
        caveats=_caveats(run, software, measure, length_kind, job),
        conditions=_conditions(run, software, job[0]),
    )


def _conditions(run: PublishedRun, software: Software, job: Job) -> Conditions:
    lengths = read_lengths(run)
    if lengths is None or job.max_length is None:
        return Conditions(empties_cache=software.empties_cache)
    sampling = Sampling(
        limit=job.max_length,
        batch_size=job.per_device_train_batch_size,
        num_samples=software.num_samples,
        drops_long=software.drops_long_samples,
    )
    return Conditions(orders=orders(lengths, sampling), empties_cache=software.empties_cache)


def _method(run: PublishedRun) -> tuple[str, bool] | Missing:
    """(sft | grpo | dpo, LoRA?)"""
    text = run.method.lower()
    if not text:
        return Missing(reason="method not stated")
    if "init" in text:
        return Missing(reason="not a training peak", detail=run.method)
    words = set(re.findall(r"[a-z]+", text.replace("no lora", "")))
    kind = next((name for name in ("grpo", "dpo") if name in words), "sft")
    if text.startswith(("peft:", "adapter")) or (kind == "sft" and not words & {"lora", "qlora", "full", "sft"}):
        return Missing(reason="a method other than LoRA and full fine-tuning", detail=run.method)
    return kind, bool(words & {"lora", "qlora"})


def _variant(run: PublishedRun) -> Missing | None:
    """Missing if the row says that it trained something else than a causal text model with plain LoRA or in full."""
    about = f"{run.note} {run.measure}".lower()
    if any(word in about for word in ("multimodal", "audio data", "not causal-lm")):
        return Missing(reason="not causal language modelling of text (images, audio, embeddings)")
    if "QAT" in run.source or "qat" in (run.quant or "").lower():
        return Missing(reason="quantisation-aware training")
    config = run.extra.get("peft_config")
    if not isinstance(config, dict):
        return None
    unknown = sorted(str(name) for name, value in config.items() if value and name not in _LORA_SETTINGS)
    initialisation = config.get("init_lora_weights")
    if isinstance(initialisation, str) and not initialisation.lower().startswith(_PLAIN_INITIALISATIONS):
        unknown.append(f"init_lora_weights={initialisation}")
    if config.get("bias") not in (None, "none"):
        unknown.append("bias")
    return Missing(reason="a variant of LoRA that a Job cannot describe", detail=", ".join(unknown)) if unknown else None


def model_names(name: str) -> tuple[str, ...]:
    """Names under which a published model may be known: as given, without remarks, and without the suffix of a quantised upload."""
    plain = re.sub(r"\s*\(.*?\)\s*$", "", name).strip()
    base = re.sub(r"(-unsloth)?-bnb-4bit$", "", plain)
    short = base.rpartition("/")[2]
    names = [name.strip(), plain, base]
    if base.lower().startswith(("unsloth/", "nousresearch/")):  # re-uploads of the same weights under the same name
        names += [f"{owner}/{short}" for owner in ("meta-llama", "mistralai", "Qwen", "google", "microsoft", "ibm-granite")] + [short]
    return tuple(dict.fromkeys(names))


def _architecture(run: PublishedRun, software: Software, resolve: Resolver) -> Architecture | Missing:
    if run.model is None:
        return Missing(reason="model not stated")
    for name in model_names(run.model):
        architecture = own_architecture(name)
        if architecture is None:
            try:
                architecture = resolve(name)
            except LlamamathError:
                continue
        if software.separate_projections and architecture.fused_projections:
            architecture = replace(architecture, family="llama", fused_projections=False)
        return replace(architecture, vocab_size=architecture.vocab_size + software.extra_vocabulary)
    return Missing(reason="model or architecture not described here", detail=run.model)


def _job(run: PublishedRun, software: Software, method: str, with_lora: bool) -> tuple[Job, Precision] | Missing:
    quantization = read_quantization(run, software)
    precision = read_precision(run)
    checkpointing = read_checkpointing(run)
    lora = _lora(run, software, quantization, precision) if with_lora else None
    optimizer = read_optimizer(run, quantization) if isinstance(quantization, str) else None
    if run.micro_batch is None or run.micro_batch < 1:
        return Missing(reason="batch size not stated")
    lengths = _lengths(run, method)
    for part in (quantization, precision, lengths, checkpointing, lora, optimizer):
        if isinstance(part, Missing):
            return part
    assert isinstance(quantization, str) and isinstance(precision, Precision) and isinstance(checkpointing, tuple)
    assert isinstance(optimizer, str) and isinstance(lengths, tuple) and not isinstance(lora, Missing)
    if quantization != "none" and lora is None:
        return Missing(reason="quantised weights trained in full", detail=quantization)
    attention, _ = read_attention(run)
    reentrant = run.flags.get("use_reentrant")
    maximum, prompt, completion = lengths
    ragged = method != "sft" or (software.pads and run.micro_batch > 1 and read_length_kind(run) != "exact")
    job = Job(
        model=run.model or "",
        method=method,
        stack=software.stack,
        quantization=quantization,
        dtype=precision.weights,
        lora=lora,
        per_device_train_batch_size=run.micro_batch,
        gradient_accumulation_steps=run.grad_accum or 1,
        max_length=maximum,
        max_prompt_length=prompt,
        max_completion_length=completion,
        num_generations=run.num_generations if method == "grpo" else None,
        padding=ragged,
        gradient_checkpointing=checkpointing[0],
        use_reentrant=reentrant if isinstance(reentrant, bool) else software.use_reentrant,
        kbit_preparation=software.kbit_preparation and quantization != "none",
        attn_implementation=attention,
        loss=software.loss,
        optim=optimizer,
        offload=("checkpoints",) if checkpointing[1] else (),
        mixed_precision=software.mixed_precision if precision.mixed is None else precision.mixed,
        fused_kernels=software.fused_kernels,
    )
    return job, precision


def _lora(run: PublishedRun, software: Software, quantization: str | Missing, precision: Precision | Missing) -> Lora | Missing | None:
    if isinstance(quantization, Missing) or isinstance(precision, Missing):
        return None
    targets = read_targets(run, software)
    if isinstance(targets, Missing):
        return targets
    if not run.lora_rank:
        return Missing(reason="LoRA rank or targets not stated", detail="rank")
    config = run.extra.get("peft_config")
    given = config if isinstance(config, dict) else {}
    dropout = given.get("lora_dropout")
    habit = software.adapter_dtype if quantization == "none" else software.quantized_adapter_dtype
    if habit == "bfloat16":  # adapters follow the base weights there
        habit = precision.weights
    return Lora(
        r=run.lora_rank,
        lora_dropout=float(dropout) if isinstance(dropout, int | float) else software.lora_dropout,
        target_modules=targets,
        dtype=precision.adapters or habit,
        use_dora=given.get("use_dora") is True,
    )


def _lengths(run: PublishedRun, method: str) -> tuple[int | None, int | None, int | None] | Missing:
    """(max_length, max_prompt_length, max_completion_length)"""
    if method == "grpo":
        if not run.prompt_len or not run.completion_len or not run.num_generations:
            return Missing(reason="sequence length not stated", detail="prompt, completion or number of generations")
        return None, run.prompt_len, run.completion_len
    return (run.seq_len, None, None) if run.seq_len else Missing(reason="sequence length not stated")


def _group(software: Software, length_kind: str) -> str:
    if software.relation == "other":
        return "E" if length_kind == "bound" else "D"
    if length_kind != "exact":
        return "C"
    return "A" if software.relation == "same" else "B"


def _caveats(
    run: PublishedRun, software: Software, measure: Measure, length_kind: str, described: tuple[Job, Precision]
) -> tuple[str, ...]:
    precision = described[1]
    found = list(software.caveats) + list(measure.caveats) + list(read_attention(run)[1])
    if length_kind != "exact":
        found.append("length-bound" if length_kind == "bound" else "length-reached")
    if measure.kind != "allocated":
        known = "order-unknown" if read_lengths(run) is not None else "reserved-varying"
        found.append("allocator-slack" if length_kind == "exact" else known)
    if precision.by_gpu:
        found.append("dtype-by-gpu")
    if precision.changed:
        found.append("dtype-changed")
    if isinstance(run.lora_targets, str) and run.lora_targets.lower().startswith("default"):
        found.append("targets-by-default")
    if run.trust.lower().startswith("low"):
        found.append("self-reported-doubt")
    return tuple(dict.fromkeys(found))
