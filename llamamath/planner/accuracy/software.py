"""Which training code made a published run, and what that code does that the run's own row does not say.

Recognised by the words of `framework`, `source` and `flags`, never by a row's id. Each habit was read in the code named in the comment
beside it; where a row says otherwise, the row wins.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from llamamath.planner.accuracy.rows import PublishedRun

MODELLED_TRANSFORMERS = {(4, 45): "transformers-4.45", (4, 48): "transformers-4.48"}
"""transformers releases whose own loss code has a stack of its own; 5.x is `transformers-5`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Software:
    """Habits of one piece of training code.

    relation: `same` (the code path we model), `hugging face` (transformers' Trainer or models, other version or other kernels), or `other`.
    """

    name: str
    relation: str
    stack: str
    adapter_dtype: str = "float32"
    quantized_adapter_dtype: str = "float32"
    lora_dropout: float = 0.0
    use_reentrant: bool = False
    mixed_precision: bool = False
    loss: str = "full"
    kbit_preparation: bool = False
    fused_kernels: bool = False
    pads: bool = False
    """Ragged batches reach the attention with a mask, if they have more than one row."""
    num_samples: int = 1000
    """Samples of one epoch, where their lengths are known to vary."""
    drops_long_samples: bool = False
    """Samples above the maximum length are left out, not cut to it."""
    empties_cache: bool = False
    """The training loop calls torch.cuda.empty_cache now and then."""
    extra_vocabulary: int = 0
    default_targets: tuple[str, ...] | None = None
    nf4_is_double_quantized: bool = False
    separate_projections: bool = False
    """Stores models with fused projections (phi3) with separate ones."""
    caveats: tuple[str, ...] = ()


def versions(run: PublishedRun) -> dict[str, tuple[int, ...]]:
    """Versions named in `framework`: `{"transformers": (4, 48, 1), ...}`. Words without a number after them are left out."""
    found = re.findall(r"([a-z][a-z0-9_-]*)\s*[~=<>]*\s*v?(\d+(?:\.\d+)+)", run.framework.lower())
    return {name: tuple(int(part) for part in text.split(".")) for name, text in reversed(found)}


def software_of(run: PublishedRun) -> Software | str:
    """The habits of the code behind a run, or the reason why this code cannot be described."""
    words = run.framework.lower()
    if not words:
        return "software not stated"
    if any(name in words for name in ("deepspeed", "zero-3", "fsdp", "megatron")) or run.flag("fsdp"):
        return "sharded or offloading engine (DeepSpeed, FSDP)"
    for recognised, habits in _KNOWN:
        if recognised(run):
            return habits(run)
    return "training code not known here"


def nearest_stack(transformers: tuple[int, ...] | None) -> tuple[str, bool]:
    """(stack, whether it is that very release) for a transformers version.

    Up to 4.45 models make float32 logits at once and a shifted copy; 4.46 to 4.48 keep the model-dtype logits as well; from 4.49 on the
    labels are shifted, not the logits (read in the wheels of 4.37.2, 4.46.3, 4.49.0, 4.50.3, 4.52.4, 4.57.1).
    """
    if transformers is None or transformers < (4, 46):
        return "transformers-4.45", transformers is not None and transformers[:2] == (4, 45)
    if transformers < (4, 49):
        return "transformers-4.48", transformers[:2] == (4, 48)
    return "transformers-5", transformers[0] == 5


def _fms(run: PublishedRun) -> Software:
    # fms-acceleration scripts/benchmarks: scenarios*.yaml (lora_dropout 0.1), defaults.yaml (flash attention, checkpointing); TRL's
    # SFTTrainer, packed; transformers' reentrant checkpointing; fms-hf-tuning adds a pad token to the vocabulary
    config = str(run.flags.get("config") or "none").lower()
    stack, same = nearest_stack(versions(run).get("transformers"))
    fused = "foak" in config or "fast-kernels" in config
    liger = "liger" in config.split("-")
    return Software(
        name="fms-acceleration",
        relation="same" if same and not fused and not liger else "hugging face",
        stack=stack,
        adapter_dtype=_peft_adapter_dtype(run),
        lora_dropout=0.1,
        use_reentrant=True,
        loss="liger" if liger else "full",
        kbit_preparation="baseline-peft" in config,
        fused_kernels=fused,
        extra_vocabulary=1,
        caveats=(("fused-kernels",) if fused else ()) + (() if same else ("other-version",)),
    )


def _peft_benchmark(run: PublishedRun) -> Software:
    # huggingface/peft method_comparison/MetaMathQA/run.py: own loop, no autocast unless `amp`, right padding with a mask, empty_cache
    # every step (every tenth from 2025-11-13 on)
    stack, same = nearest_stack(versions(run).get("transformers"))
    return Software(
        name="PEFT's benchmark",
        relation="hugging face",
        stack=stack,
        pads=True,
        empties_cache=True,
        caveats=("peft-benchmark-evaluation",) + (() if same else ("other-version",)),
    )


def _qwen_repository(run: PublishedRun) -> Software | str:
    # QwenLM/Qwen finetune.py: Trainer with bf16, LoRA dropout 0.05, transformers < 4.38 (reentrant checkpointing); the profile went into
    # its README on 2023-10-07, when PEFT was at 0.5.0 (adapters in float32)
    if run.method == "full":
        return "sharded or offloading engine (DeepSpeed, FSDP)"  # its only full-parameter script is finetune_ds.sh, DeepSpeed ZeRO-3
    return Software(
        name="Qwen's finetune.py",
        relation="hugging face",
        stack="transformers-4.36",
        adapter_dtype="float32",
        lora_dropout=0.05,
        use_reentrant=True,
        mixed_precision=True,
    )


def _swift(run: PublishedRun) -> Software:
    # modelscope/ms-swift at 97e4d198b (2024-01-02, "Update benchmark 0101"): transformers >= 4.33, peft 0.6 to 0.7 (adapters in the
    # base's dtype, float32 on 4-bit), lora_dropout_p 0.05, bf16 by default, non-reentrant checkpointing patched in (llm/utils/model.py
    # fix_gradient_checkpointing_warning), LoRATM: q, k and v; scripts/benchmark/test_memory_time/run_single.py: one epoch of the whole
    # data set (4,959 samples) up to max_length 2048, of 1,000 samples above; truncation_strategy `delete` (llm/utils/argument.py)
    return Software(
        name="ms-swift",
        relation="hugging face",
        stack="transformers-4.36",
        adapter_dtype="bfloat16",
        lora_dropout=0.05,
        mixed_precision=True,
        default_targets=("q_proj", "k_proj", "v_proj"),
        nf4_is_double_quantized=True,
        num_samples=4959 if (run.seq_len or 0) <= 2048 else 1000,
        drops_long_samples=True,
    )


def _trl(run: PublishedRun) -> Software:
    # before 1.0 DPO and SFT make all logits at once; bf16 autocast is their default from 0.19 on (read in the wheels of 0.16 to 0.20)
    version = versions(run).get("trl")
    old = version is not None and version < (1, 0)
    loss = "full" if old else "chunked"
    notebook = () if old else ("trl-notebook-settings",)
    return Software(
        name="TRL",
        relation="hugging face",
        stack="trl-1.16",
        mixed_precision=version is None or version >= (0, 19),
        loss="liger" if run.flag("liger_kernel") or run.flag("liger") else loss,
        pads=True,
        caveats=("other-version", "trl-old-logits") if old else notebook,
    )


def _litgpt(run: PublishedRun) -> Software:
    # Lightning-AI/litgpt: finetune/lora.py (dropout 0.05, bf16-true, no mask, lm_head and loss in chunks of 128 tokens) and full.py;
    # `lit-gpt` until its renaming in March 2024
    old = re.search(r"lit[-_]gpt", run.framework.lower()) is not None
    return Software(
        name="LitGPT",
        relation="other",
        stack="litgpt-2023" if old else "litgpt-2024",
        adapter_dtype="bfloat16",
        quantized_adapter_dtype="bfloat16",
        lora_dropout=0.05,
        loss="full" if run.method.lower().startswith("full") else "chunked",
    )


def _torchtune(run: PublishedRun) -> Software:
    # pytorch/torchtune at 1814feb17: recipes/*_single_device.py and their yaml files (lora_dropout 0, pure bf16, causal without a mask)
    compiled = run.flag("compile")
    return Software(
        name="torchtune",
        relation="other",
        stack="torchtune-0.4-compile" if compiled else "torchtune-0.4",
        adapter_dtype="bfloat16",
        quantized_adapter_dtype="bfloat16",
        loss="chunked" if run.flag("chunked_ce") else "full",
        caveats=(("torch-compile",) if compiled else ()) + (("torchao-nf4",) if "nf4" in (run.quant or "") else ()),
    )


def _unsloth(run: PublishedRun) -> Software | str:
    trainers = run.flags.get("trainer")
    names = trainers if isinstance(trainers, list) else []
    if names and not any("SFTTrainer" in str(name) or "UnslothTrainer" in str(name) for name in names):
        return "not causal language modelling (embeddings, audio)"
    if run.method == "full":
        return "precision not stated"  # Unsloth picks float32 or bfloat16 for full fine-tuning; the rows do not say which
    version = versions(run).get("unsloth", (2024, 0))
    whole_logits = version < (2024, 11)  # cut cross entropy came on 2024-11-17
    return Software(
        name="Unsloth",
        relation="other",
        stack="unsloth-2024" if whole_logits else "trl-1.16",
        mixed_precision=True,
        loss="full" if whole_logits else "liger",
        nf4_is_double_quantized=True,
        separate_projections=True,
        caveats=("unsloth-code",) + (("unsloth-dynamic",) if version >= (2024, 12) and "nf4" in (run.quant or "").lower() else ()),
    )


def _axolotl(run: PublishedRun) -> Software:
    chunked = run.flag("cce")
    return Software(
        name="axolotl",
        relation="other",
        stack="trl-1.16" if chunked else "transformers-5",
        lora_dropout=0.0,
        mixed_precision=True,
        loss="chunked" if chunked else "full",
        caveats=("axolotl-code",),
    )


def _transformers(run: PublishedRun) -> Software:
    # the plain Trainer (or TRL's SFTTrainer before it had a loss of its own), with the library's defaults of that version
    transformers = versions(run).get("transformers")
    stack, same = nearest_stack(transformers)
    return Software(
        name="transformers",
        relation="same" if same else "hugging face",
        stack=stack,
        adapter_dtype=_peft_adapter_dtype(run),
        use_reentrant=transformers is None or transformers < (5,),
        pads=True,
        loss="liger" if run.flag("liger") or run.flag("liger_kernel") else "full",
        caveats=() if same else ("other-version",),
    )


def _peft_adapter_dtype(run: PublishedRun) -> str:
    """PEFT 0.6 to 0.11 gave adapters the dtype of a floating-point base layer; before and after they are float32 (read in the wheels)."""
    peft = versions(run).get("peft")
    return "bfloat16" if peft is not None and (0, 6) <= peft < (0, 12) else "float32"


def _starts(*prefixes: str) -> Callable[[PublishedRun], bool]:
    return lambda run: run.framework.lower().startswith(prefixes)


def _is_fms(run: PublishedRun) -> bool:
    place = f"{run.source} {run.framework}".lower()
    return "fms-acceleration" in place or "fms-hf-tuning" in place


_KNOWN: tuple[tuple[Callable[[PublishedRun], bool], Callable[[PublishedRun], Software | str]], ...] = (
    (_is_fms, _fms),
    (lambda run: "method_comparison" in run.source.lower(), _peft_benchmark),
    (_starts("unsloth"), _unsloth),
    (_starts("litgpt", "lit-gpt", "lit_gpt"), _litgpt),
    (_starts("torchtune"), _torchtune),
    (_starts("ms-swift", "swift"), _swift),
    (_starts("axolotl"), _axolotl),
    (lambda run: "finetune.py" in run.framework.lower() and "qwen" in run.framework.lower(), _qwen_repository),
    (lambda run: "transformers" in versions(run), _transformers),
    (_starts("trl"), _trl),
)
