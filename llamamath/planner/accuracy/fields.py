"""Reading the free text of published runs: precision, quantisation, LoRA targets, optimizer, attention, lengths, what was measured.

Each function returns the value in our own words, or `Missing(reason)` when the text does not give it; none of them guesses.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from llamamath.planner.accuracy.rows import PublishedRun
from llamamath.planner.accuracy.software import Software
from llamamath.planner.job import ALL_LINEAR

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_ATTENTION, _MLP = PROJECTIONS[:4], PROJECTIONS[4:]
_QWEN1 = {"c_attn": ("q_proj", "k_proj", "v_proj"), "c_proj": ("o_proj", "down_proj"), "w1": ("up_proj",), "w2": ("gate_proj",)}
_TARGETS: dict[str, tuple[str, ...]] = {name: (name,) for name in PROJECTIONS} | {
    "q": ("q_proj",), "k": ("k_proj",), "v": ("v_proj",), "query": ("q_proj",), "key": ("k_proj",), "value": ("v_proj",),
    "projection": ("o_proj",), "output_proj": ("o_proj",), "mlp": _MLP, "self_attn": _ATTENTION, "all attn": _ATTENTION,
}  # fmt: skip
_TRAINS_EMBEDDINGS = ("embed", "lm_head", "wte", "head", "output", "modules_to_save")
_DTYPE = re.compile(r"\b(bf16|bfloat16|fp16|float16|fp32|float32)\b")
_DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
_UNSUPPORTED_WEIGHTS = ("gptq", "awq", "hqq", "aqlm", "eetq", "fp8", "mxfp4", "exl2", "quanto", "qat")


@dataclass(frozen=True, slots=True, kw_only=True)
class Missing:
    """What a row lacks, or says that a Job cannot say."""

    reason: str
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """dtype of the base weights, of the adapters (None: the software's habit), and whether autocast was on (None: likewise)."""

    weights: str
    adapters: str | None
    mixed: bool | None
    by_gpu: bool = False
    changed: bool = False
    """The source says that it changed its dtype after the figure was recorded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """What a row says of its samples' lengths, in tokens."""

    mean: float
    deviation: float
    shortest: int
    longest: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """`kind`: allocated, reserved or device, the figure of an Estimate to compare with; and what is unclear about it."""

    kind: str
    caveats: tuple[str, ...] = ()


def read_quantization(run: PublishedRun, software: Software) -> str | Missing:
    """`none`, `int8`, `nf4` or `nf4-dq`. fp4 has the layout of nf4, so the same bytes."""
    text = (run.quant or "").lower()
    if not text:
        return Missing(reason="precision not stated", detail="quantisation")
    if any(name in text for name in _UNSUPPORTED_WEIGHTS):
        return Missing(reason="weights quantised by another method (GPTQ, AWQ, ...)", detail=text)
    head = text.split()[0]
    if head in ("none", "no"):
        return "none"
    if "int8" in head or "8bit" in head or "8-bit" in head:
        return "int8"
    if head.startswith(("nf4", "fp4", "int4", "bnb", "4bit", "4-bit")):
        return "nf4-dq" if "dq" in head or software.nf4_is_double_quantized else "nf4"
    return Missing(reason="weights quantised by another method (GPTQ, AWQ, ...)", detail=text)


def read_precision(run: PublishedRun) -> Precision | Missing:
    """From `dtype`: "weights bfloat16; amp bf16", "bf16-true (weights, LoRA, ...)", "fp16 on T4 / bf16 on A100", and the like."""
    text = (run.dtype or "").lower()
    found = _DTYPE.findall(text)
    if not found:
        return Missing(reason="precision not stated", detail="dtype")
    names = [_DTYPES.get(name, name) for name in found]
    by_gpu = re.search(r"(fp16|float16) on [^/]*t4[^/]*/\s*(bf16|bfloat16) on", text) is not None
    if by_gpu:
        if run.gpu is None:
            return Missing(reason="precision not stated", detail="depends on an unnamed GPU")
        names = ["float16" if re.search(r"\bt4\b", run.gpu.lower()) else "bfloat16"]
    named = re.search(r"(?:weights|base)\s+(?:in\s+)?(bf16|bfloat16|fp16|float16|fp32|float32)\b", text)
    weights = names[0] if named is None or by_gpu else _DTYPES.get(named.group(1), named.group(1))
    adapter = re.search(r"adapter(?:s| weights)?\s+(?:in\s+)?(bf16|bfloat16|fp16|float16|fp32|float32)\b", text)
    adapters = _DTYPES.get(adapter.group(1), adapter.group(1)) if adapter else None
    if adapter is None and ("pure" in text or "-true" in text):
        adapters = weights
    mixed: bool | None = None
    amp = run.flags.get("amp")
    if isinstance(amp, bool):
        mixed = amp
    elif re.search(r"\bno (amp|autocast)\b", text) or "-true" in text or "pure" in text:
        mixed = False
    elif re.search(r"\b(amp|autocast|mixed)\b", text):
        mixed = True
    return Precision(weights=weights, adapters=adapters, mixed=mixed, by_gpu=by_gpu, changed="now says" in text or "changed" in text)


def read_targets(run: PublishedRun, software: Software) -> str | tuple[str, ...] | Missing:
    """PEFT's `target_modules` in transformers' names. Names of modules the model does not have are dropped, as PEFT drops them."""
    given = run.lora_targets
    if given is None:
        return Missing(reason="LoRA rank or targets not stated", detail="targets")
    if isinstance(given, str):
        text = given.strip().lower()
        if re.match(r"(all[- ]linear|all\b)", text):
            return ALL_LINEAR
        if text.startswith("default"):
            return software.default_targets or Missing(reason="LoRA rank or targets not stated", detail=given)
        if re.search(r"[\\^$*+?()|\[\]]", given) and (matched := _match_regex(given)):
            return matched
        given = tuple(part.strip() for part in re.split(r"[,+;]", given) if part.strip())
    names = [name.strip().lower() for name in given]
    if len(names) == 1 and names[0] in ("all-linear", "all linear"):
        return ALL_LINEAR
    if any(word in name for name in names for word in ("embed", "wte", "modules_to_save")) or {"lm_head", "head", "output"} & set(names):
        return Missing(reason="embeddings or lm_head trained or adapted too", detail=", ".join(given))
    table = _TARGETS if set(names) & set(_TARGETS) else _QWEN1
    chosen = {target for name in names for target in table.get(name, ())}
    if not chosen:
        return Missing(reason="LoRA rank or targets not stated", detail=", ".join(given))
    return ALL_LINEAR if chosen == set(PROJECTIONS) else tuple(name for name in PROJECTIONS if name in chosen)


def _match_regex(pattern: str) -> tuple[str, ...]:
    """Projections whose path a `target_modules` pattern matches as PEFT would (`re.fullmatch` on the module's path)."""
    prefixes = ("model.layers.0.", "model.language_model.layers.0.")
    paths = {name: f"{'self_attn' if name in _ATTENTION else 'mlp'}.{name}" for name in PROJECTIONS}
    try:
        return tuple(name for name, path in paths.items() if any(re.fullmatch(pattern, prefix + path) for prefix in prefixes))
    except re.error:
        return ()


def read_optimizer(run: PublishedRun, quantization: str) -> str | Missing:
    """transformers' name of the optimizer. `torch AdamW` without more is torch's own: foreach on a GPU, `adamw_torch`.

    Remarks in brackets only count when nothing stands before them.
    """
    text = (run.optimizer or "").lower()
    if not text:
        return Missing(reason="optimizer not stated")
    if "in_bwd" in text or "in backward" in text or run.flag("optimizer_in_bwd"):
        return Missing(reason="optimizer a Job cannot describe", detail="a step per parameter inside the backward")
    text = text.partition("(")[0].strip() or text
    if "->" in text and "when quantized" in text:
        text = text.split("->")[1 if quantization != "none" else 0]
    if any(name in text for name in ("lora-fa", "galore", "lomo", "lion", "cpuadam", "muon", "riemannian", "lora+")):
        return Missing(reason="optimizer a Job cannot describe", detail=text)
    eight = re.search(r"8[-_]?bit", text) is not None
    if "paged" in text:
        return "paged_adamw_8bit" if eight else "paged_adamw_32bit"
    for name in ("adafactor", "sgd"):
        if name in text:
            return name
    if "adam" not in text:
        return Missing(reason="optimizer a Job cannot describe", detail=text)
    if eight:
        return "adamw_8bit"
    return "adamw_torch_fused" if "fused" in text else "adamw_torch"


def read_attention(run: PublishedRun) -> tuple[str, tuple[str, ...]]:
    """(attn_implementation, caveats). xformers' kernel keeps what sdpa's without a mask keeps."""
    text = (run.attn or "").lower()
    if not text:
        return "sdpa", ("attention-not-stated",)
    if text.startswith("eager"):
        return "eager", ()
    if text.startswith(("flash", "fa2", "fa3")) or re.search(r"fa[23] = true", text):
        return "flash_attention_2", ()
    return "sdpa", ()


def read_checkpointing(run: PublishedRun) -> tuple[bool, bool] | Missing:
    """(gradient checkpointing, checkpoints moved to host memory)."""
    offload = run.flag("activation_offloading") or run.flag("activation_offload") or run.flag("activation_checkpoint_cpu_offload")
    if isinstance(run.grad_checkpointing, bool):
        return run.grad_checkpointing, offload and run.grad_checkpointing
    text = (run.grad_checkpointing or "").lower()
    if text in ("true", "yes") or "offload" in text or text.startswith("unsloth"):
        return True, offload or "offload" in text or text.startswith("unsloth")
    if text in ("false", "no"):
        return False, False
    return Missing(reason="gradient checkpointing not stated")


def read_length_kind(run: PublishedRun) -> str:
    """`exact` (every batch has this length), `reached` (batches vary, the longest reaches it) or `bound` (only a maximum)."""
    text = run.seq_len_kind.lower()
    if run.flag("packing") or run.flag("packed"):
        return "exact"
    if "not packed" in text or text.startswith("max only"):
        return "bound"
    if text.startswith("exact") or "packed" in text or "packing to" in text or "fixed length" in text:
        return "exact"
    return "reached" if re.search(r"\breach(es|ed)\b", text) else "bound"


def read_lengths(run: PublishedRun) -> Lengths | None:
    """Mean, deviation, minimum and maximum of the samples' lengths, where the row gives them: "lengths 3234+-2547, min 91, ..."."""
    number = r"(\d+(?:\.\d+)?)"
    found = re.search(rf"{number}\s*(?:\+-|\+/-|±)\s*{number}\D+min\D*(\d+)\D+max\D*(\d+)", run.seq_len_kind)
    if found is None:
        return None
    mean, deviation, shortest, longest = (float(text) for text in found.groups())
    if not 0 < shortest <= mean <= longest or deviation <= 0:
        return None
    return Lengths(mean=mean, deviation=deviation, shortest=int(shortest), longest=int(longest))


def read_measure(run: PublishedRun) -> Measure | Missing:
    """What the published figure is. A figure of weights after loading is not a training peak."""
    text = run.measure.lower()
    if "init only" in text or "model weights take" in text:
        return Missing(reason="not a training peak", detail=run.measure)
    unstated = "not stated" in text or "unstated" in text
    loose = ("rounded",) if "~" in text or "about" in text or "comment" in text else ()
    if "nvidia-smi" in text:
        sure = ("tool-not-stated",) if unstated or "likely" in text or "style" in text else ()
        return Measure(kind="device", caveats=sure + (("unit-not-stated",) if "gib not stated" in text else ()) + loose)
    if "allocated" in text and "reserved" in text:
        return Measure(kind="reserved", caveats=("torch-statistic-not-stated", *loose))
    if "reserved" in text:
        return Measure(kind="reserved", caveats=loose)
    if "allocat" in text:
        return Measure(kind="allocated", caveats=loose)
    if "active" in text:
        return Measure(kind="allocated", caveats=("active-bytes", *loose))
    return Measure(kind="device", caveats=("tool-not-stated", *loose))
