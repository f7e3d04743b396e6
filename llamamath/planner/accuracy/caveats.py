"""What makes a published run differ from the one the planner describes, and which way that can move the figure by more than a few per cent.

A caveat is attached to a run by rule (`software.py`, `jobs.py`), before any prediction is made. It never changes a
prediction; it explains a miss, and a miss that none of its run's caveats can explain is reported as unexplained.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Direction = Literal["over", "under", "either", "none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Caveat:
    """`moves`: which miss over 15 % it can cause. `over`: predicted too high; `under`: too low; `none`: too small for that, or no error."""

    key: str
    moves: Direction
    text: str
    source: str = ""


_CAVEATS = (
    Caveat(
        key="length-bound",
        moves="over",
        text="the length is only an upper bound: batches were padded to their own longest sample, so real ones were shorter",
    ),
    Caveat(key="length-reached", moves="none", text="lengths vary; the longest batch is taken to reach the stated maximum"),
    Caveat(
        key="order-unknown",
        moves="either",
        text="max_memory_reserved under the default allocator while lengths vary from batch to batch: a batch longer than all before it "
        "finds no cached block large enough, and what was cached for shorter ones stays. The median over nine replays with the stated "
        "statistics of the lengths is predicted; which order the run had is not known, and the nine lie up to 40 % apart",
        source="llamamath/planner/accuracy/orders.py; the same replay meets ms-swift's first benchmark, where all samples were cut to one "
        "length, to 0.2-1.4 % (modelscope/ms-swift docs at cfcb67265)",
    ),
    Caveat(
        key="reserved-varying",
        moves="under",
        text="reserved memory while lengths vary in a way the source does not give: one batch, repeated at the stated length, is replayed; "
        "blocks cached for other lengths come on top",
    ),
    Caveat(
        key="allocator-slack",
        moves="either",
        text="reserved memory and nvidia-smi include what the caching allocator keeps beyond what is in use (replayed, from the described "
        "tensors in their order) and, for nvidia-smi, the CUDA context (0.6 GiB taken, 0.2 to 1.0 known)",
    ),
    Caveat(
        key="peft-benchmark-evaluation",
        moves="under",
        text="the figure covers the whole process: generation for evaluation in batches of 50 (up to 800 tokens, with a KV cache) and, "
        "from 2025-11 on, a loss over 768-token Wikipedia batches",
        source="huggingface/peft method_comparison/MetaMathQA/run.py: evaluate(batch_size_eval=50), calculate_mean_per_token_loss",
    ),
    Caveat(
        key="tool-not-stated",
        moves="either",
        text="the source does not say which tool or statistic the figure comes from; compared with the device total (nvidia-smi)",
    ),
    Caveat(
        key="torch-statistic-not-stated", moves="either", text="one of torch's figures (active, allocated or reserved), not stated which"
    ),
    Caveat(key="unit-not-stated", moves="none", text="GB or GiB is not stated: taken as 10**9 bytes; if it was GiB the run used 7 % more"),
    Caveat(key="rounded", moves="none", text='a rounded figure from a comment or README ("about X GB")'),
    Caveat(
        key="active-bytes",
        moves="none",
        text="peak active bytes: allocated bytes plus blocks waiting for another stream; the same on one stream",
    ),
    Caveat(key="near-capacity", moves="over", text="the card was nearly full: the allocator returned cached blocks instead of growing"),
    Caveat(
        key="other-version",
        moves="none",
        text="a transformers version between those we model; the nearest one with the same loss code is used",
        source="transformers wheels: the logits' shifted copy is made up to 4.48 and gone from 4.49 on",
    ),
    Caveat(key="fused-kernels", moves="none", text="fused LoRA, RMSNorm, rotary and cross-entropy kernels of fms-acceleration"),
    Caveat(
        key="trl-old-logits",
        moves="under",
        text="TRL before 1.x held whole logits, in several copies, where TRL 1.16 computes them in tiles",
    ),
    Caveat(
        key="trl-notebook-settings",
        moves="none",
        text="LoRA dropout and adapter dtype are not in the source's row (0 and float32 assumed); activation offloading is described as "
        "offloaded checkpoints",
    ),
    Caveat(key="torch-compile", moves="over", text="torch.compile fuses pointwise operations, which then save fewer tensors"),
    Caveat(key="torchao-nf4", moves="none", text="torchao's NF4, whose scales are kept otherwise than bitsandbytes'"),
    Caveat(
        key="unsloth-code",
        moves="over",
        text="Unsloth's hand-written layers and kernels save fewer tensors than transformers', which are described",
    ),
    Caveat(
        key="unsloth-dynamic",
        moves="under",
        text="Unsloth's dynamic 4-bit uploads keep some layers in 16 bit; we count all linear layers as NF4",
    ),
    Caveat(key="unsloth-fused-kernels", moves="none", text="Unsloth stores Phi-3 models as Llama ones, with separate projections"),
    Caveat(
        key="axolotl-code",
        moves="either",
        text="axolotl's patched trainer: packs micro_batch x sequence_len into one row, cut cross entropy where its plugin is on; LoRA "
        "dropout and mixed precision as its defaults, not in the source's row",
    ),
    Caveat(
        key="dtype-changed",
        moves="under",
        text="the source changed its dtype after the figure was recorded; in float32 instead of half precision, embeddings, lm_head and "
        "compute take twice as much",
    ),
    Caveat(key="dtype-by-gpu", moves="none", text="precision chosen by the GPU: float16 on a T4, bfloat16 on newer ones"),
    Caveat(key="attention-not-stated", moves="either", text="the attention kernel is not stated: sdpa, transformers' default, assumed"),
    Caveat(key="targets-by-default", moves="none", text="LoRA targets are the framework's default for this model (q, k and v)"),
    Caveat(key="trainable-differs", moves="none", text="the published count of trainable parameters is not that of the described adapters"),
    Caveat(key="self-reported-doubt", moves="none", text="the data set itself marks this figure as of low trust"),
)

CAVEATS: dict[str, Caveat] = {caveat.key: caveat for caveat in _CAVEATS}
"""Every caveat by its key."""


def explains(key: str, *, over: bool) -> bool:
    """True if the caveat can cause a miss in that direction (`over`: the prediction is too high)."""
    return CAVEATS[key].moves in ("either", "over" if over else "under")
