"""The papers' own memory equations, for comparison only, and why their figures differ from this planner's. Never used for a verdict.

eq. 4 (LLaMA-Math proposal): M = P*Q_bits/8 + R*L*P_LoRA + O*P_opt + G*P_grad + A*S*B
eq. 6 (HLE vision pilot):    M = P*B/8 + A + T + D

Both are GB of 10**9 bytes. What neither has: logits, KV cache, dequantised weights and other temporaries, the allocator's slack, the
CUDA context, and weights that no quantiser touches (embeddings, lm_head, norms).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from llamamath.errors import FieldError
from llamamath.planner.architecture import Architecture
from llamamath.planner.estimate import Estimate
from llamamath.planner.job import ALL_LINEAR, Job, Lora
from llamamath.planner.job_files.job_file import parse_job
from llamamath.planner.parameters import count_parameters, lora_parameters, trainable_parameters, weights
from llamamath.profiles.recipes import OpenItem, PaperClaim, Recipe
from llamamath.units import format_bytes

GB = 10**9
PILOT_PARAMETERS = 11 * GB
PILOT_ADAPTER_BYTES = 8_000_000
PILOT_OVERHEAD_BYTES = 1_500_000_000
PILOT_DATASET_BYTES = 160_000_000
DTYPE_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
QUANTIZATION_BITS = {"int8": 8, "nf4": 4, "nf4-dq": 4}


@dataclass(frozen=True, slots=True, kw_only=True)
class PaperMemory:
    """The value of one of the papers' equations, term by term in bytes, in the equation's order."""

    equation: str
    terms: dict[str, int]

    @property
    def total_bytes(self) -> int:
        """The equation's left side."""
        return sum(self.terms.values())


def proposal_memory(
    *,
    num_parameters: int,
    quantization_bits: int,
    lora_rank: int,
    adapted_layers: int,
    lora_bytes_per_rank_and_layer: float,
    optimizer_bytes_per_parameter: int,
    optimizer_parameters: int,
    gradient_bytes_per_parameter: int,
    gradient_parameters: int,
    activation_bytes_per_token: int,
    sequence_length: int,
    batch_size: int,
) -> PaperMemory:
    """eq. 4 of the proposal, symbol by symbol in its order: P, Q_bits, R, L, P_LoRA, O, P_opt, G, P_grad, A, S, B."""
    terms = {
        "base_weights": num_parameters * quantization_bits // 8,
        "lora": round(lora_rank * adapted_layers * lora_bytes_per_rank_and_layer),
        "optimizer": optimizer_bytes_per_parameter * optimizer_parameters,
        "gradient": gradient_bytes_per_parameter * gradient_parameters,
        "activation": activation_bytes_per_token * sequence_length * batch_size,
    }
    return PaperMemory(equation="eq. 4", terms=terms)


def proposal_memory_of(job: Job, architecture: Architecture) -> PaperMemory:
    """eq. 4 for a job, in the plainest reading of what the proposal leaves undefined.

    P: all parameters. P_LoRA ("the LoRA parameter fraction"): bytes of adapter per unit of rank and decoder layer, so that R*L*P_LoRA is
    the adapter; without LoRA the term is zero. O, P_opt: Adam's two float32 moments, 8 bytes, for each trainable parameter. G, P_grad: a
    gradient in the trainable parameter's dtype. A ("activation memory per token"): one bfloat16 hidden state per decoder layer, 2*H*L
    bytes, which is what gradient checkpointing keeps. Table 4 does not follow from it: for 90B the first term alone is above 24 GB.
    """
    lora = job.lora
    trainable = trainable_parameters(architecture, lora)
    width = DTYPE_BYTES[lora.dtype if lora else job.dtype]
    rank, layers = lora.r if lora else 0, architecture.num_hidden_layers
    return proposal_memory(
        num_parameters=count_parameters(architecture),
        quantization_bits=QUANTIZATION_BITS.get(job.quantization, 8 * DTYPE_BYTES[job.dtype]),
        lora_rank=rank,
        adapted_layers=layers,
        lora_bytes_per_rank_and_layer=trainable * width / (rank * layers) if rank else 0.0,
        optimizer_bytes_per_parameter=8,
        optimizer_parameters=trainable,
        gradient_bytes_per_parameter=width,
        gradient_parameters=trainable,
        activation_bytes_per_token=2 * architecture.hidden_size * layers,
        sequence_length=job.sequence_length,
        batch_size=job.per_device_train_batch_size,
    )


def pilot_memory(
    *,
    num_parameters: int = PILOT_PARAMETERS,
    bits: int = 4,
    adapter_bytes: int = PILOT_ADAPTER_BYTES,
    overhead_bytes: int = PILOT_OVERHEAD_BYTES,
    dataset_bytes: int = PILOT_DATASET_BYTES,
) -> PaperMemory:
    """eq. 6 of the pilot: P*B/8 + A (adapters) + T (training overhead) + D (data set); its own numbers give 7.168 GB."""
    terms = {
        "base_weights": num_parameters * bits // 8,
        "lora": adapter_bytes,
        "overhead": overhead_bytes,
        "dataset": dataset_bytes,
    }
    return PaperMemory(equation="eq. 6", terms=terms)


def paper_memory(job: Job, architecture: Architecture, equation: str = "eq. 4") -> PaperMemory:
    """`--memory-model paper` for any job. With eq. 6 the overhead and the data set are the pilot's constants."""
    if equation == "eq. 4":
        return proposal_memory_of(job, architecture)
    if equation != "eq. 6":
        raise FieldError("equation", equation, "eq. 4, eq. 6")
    bits = QUANTIZATION_BITS.get(job.quantization, 8 * DTYPE_BYTES[job.dtype])
    width = DTYPE_BYTES[job.lora.dtype] if job.lora else 0
    adapter = width * lora_parameters(architecture, job.lora) if job.lora else 0
    return pilot_memory(num_parameters=count_parameters(architecture), bits=bits, adapter_bytes=adapter)


def paper_figures(recipe: Recipe, job: Job, architecture: Architecture) -> dict[str, float]:
    """The numbers that a recipe's `{placeholders}` stand for, from the job and the architecture; sizes in GB of 10**9 bytes.

    Quantised weights: every linear but lm_head, 4 bits and its scales (one byte per 64 with double quantisation and a nested float32 per
    256 of those, four bytes per 64 without). Checkpoints: one bfloat16 hidden state per layer. KV: text layers only, in bfloat16.
    """
    tokens, layers, hidden = job.sequence_length, architecture.num_hidden_layers, architecture.hidden_size
    linear = sum(weight.numel * weight.copies for weight in weights(architecture) if weight.role == "linear")
    others = count_parameters(architecture) - linear
    width = DTYPE_BYTES[job.dtype]
    scales = {"nf4-dq": 0.5 + 1 / 64 + 4 / (64 * 256), "nf4": 0.5 + 4 / 64, "int8": 1.0}
    per_parameter = scales.get(job.quantization, float(width))
    quantized, unquantized = linear * per_parameter, others * width
    checkpoints = 2 * hidden * tokens * layers * job.per_device_train_batch_size
    row = 2 * architecture.num_self_attention_layers * architecture.key_value_size * tokens * 2
    rows = job.generation_batch_size if job.method == "grpo" else 0
    lora = job.lora or Lora()
    attention = Lora(r=lora.r, target_modules=("q_proj", "k_proj", "v_proj", "o_proj"))
    host = recipe.claim("host_memory")
    host_bytes = (host.value_bytes or 0) if host else 0
    spacing = next((k for k in range(1, layers + 1) if checkpoints / k + quantized <= host_bytes), layers)
    gpu = recipe.claim("gpu_memory")
    return {
        "hidden_size": hidden,
        "num_layers": layers,
        "self_layers": architecture.num_self_attention_layers,
        "key_value_size": architecture.key_value_size,
        "sequence_length": tokens,
        "linear_parameters": linear,
        "bytes_per_quantized_parameter": per_parameter,
        "quantized_gb": quantized / GB,
        "unquantized_gb": unquantized / GB,
        "weights_gb": (quantized + unquantized) / GB,
        "equation_weights_gb": pilot_memory().terms["base_weights"] / GB
        if gpu and gpu.equation == "eq. 6"
        else proposal_memory_of(job, architecture).terms["base_weights"] / GB,
        "checkpoints_gb": checkpoints / GB,
        "checkpoint_spacing": spacing,
        "spacing_spare_gb": (host_bytes - checkpoints / spacing - quantized) / GB,
        "kv_row_gb": row / GB,
        "kv_gb": row * rows / GB,
        "generation_rows": rows,
        "lora_r": lora.r,
        "lora_attention": 0 if architecture.fused_projections else lora_parameters(architecture, attention),
        "lora_all_linear": lora_parameters(architecture, Lora(r=lora.r, target_modules=ALL_LINEAR)),
        "host_claim_gb": host_bytes / GB,
        "gpu_claim_gb": gpu.value if gpu else float("nan"),
    }


def explain_contradictions(recipe: Recipe, architecture: Architecture, stage: str | None = None) -> list[str]:
    """The recipe's contradictions as sentences, arithmetic filled in. `stage`: whose job the numbers are of; the last one's if None."""
    figures = paper_figures(recipe, _job(recipe, stage), architecture)
    return [f"Stated: {item.claim}. Found: {item.finding.format_map(figures)}." for item in recipe.contradictions]


def explain_choices(recipe: Recipe, architecture: Architecture, stage: str | None = None) -> list[OpenItem]:
    """What the paper leaves open and our choices, arithmetic filled in. `stage` as in `explain_contradictions`."""
    figures = paper_figures(recipe, _job(recipe, stage), architecture)
    return [replace(item, reason=item.reason.format_map(figures)) for item in recipe.open]


def explain_difference(recipe: Recipe, estimate: Estimate, architecture: Architecture, stage: str | None = None) -> list[str]:
    """Why the paper's figures differ from `estimate`, in sentences with the arithmetic. `stage` as in `explain_contradictions`."""
    sentences = []
    gpu, host = recipe.claim("gpu_memory"), recipe.claim("host_memory")
    if gpu is None:
        sentences.append(f"{recipe.title} states no GPU memory figure.")
    else:
        sentences.append(_compare("GPU memory", gpu, estimate.peak.device_bytes, f"at its worst, in phase {estimate.peak.phase}"))
        if gpu.equation:
            sentences += _missing_terms(gpu, _job(recipe, stage), estimate, architecture)
    if host is not None:
        sentences.append(_compare("host memory", host, estimate.host.peak_bytes, "at its worst"))
    return sentences + explain_contradictions(recipe, architecture, stage)


def _job(recipe: Recipe, stage: str | None) -> Job:
    found = next((item for item in recipe.stages if item.name == stage), recipe.stages[-1])
    return parse_job(found.job, source=f"recipe {recipe.name}")


def _compare(what: str, claim: PaperClaim, ours_bytes: int, when: str) -> str:
    theirs = claim.value_bytes or 0
    ratio = ours_bytes / theirs if theirs else 0.0
    return (
        f"The paper says {claim.value:g} {claim.unit} of {what} ({claim.location}; {claim.basis}); this estimate is "
        f"{ours_bytes / GB:.3g} GB ({format_bytes(ours_bytes)}) {when}, {ratio:.2g} times that."
    )


def _missing_terms(claim: PaperClaim, job: Job, estimate: Estimate, architecture: Architecture) -> list[str]:
    """What the claim's equation says for this model, and what the estimate holds at its peak that the equation has no term for."""
    value = pilot_memory() if claim.equation == "eq. 6" else paper_memory(job, architecture, claim.equation)
    parts = " + ".join(f"{size / GB:.3g} ({name.replace('_', ' ')})" for name, size in value.terms.items())
    sentences = [f"{value.equation} gives {parts} = {value.total_bytes / GB:.4g} GB."]
    phase = estimate.phase(estimate.peak.phase)
    if phase is None:
        return sentences
    absent = ["logits", "kv_cache", "temporary"]
    if claim.equation == "eq. 6":
        absent = ["optimizer", "gradient", "activation", *absent]
    held = [(name.replace("_", " "), phase.component(name)) for name in absent]
    held.append(("allocator slack and CUDA context", estimate.peak.device_bytes - estimate.peak.allocated_bytes))
    listed = [f"{name} {format_bytes(size)}" for name, size in held if size]
    if listed:
        sentences.append(f"It has no term for what is alive at that instant besides: {', '.join(listed)}.")
    return sentences
