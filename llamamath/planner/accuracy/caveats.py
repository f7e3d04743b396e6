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
        key="reserved-varying",
        moves="under",
        text="max_memory_reserved under the default allocator while lengths vary from batch to batch: blocks cached for one length do not "
        "fit the next, so reserved memory grows past what any one batch needs (we predict one batch, repeated). A replay of the allocator "
        "with Qwen-1.8B's tensors reserves 7.9 GiB for 2,048 tokens every time, and 20 to 29 GiB for random lengths up to 2,048 "
        "(published: 16.35)",
        source="torch caching allocator: blocks above 1 MiB are reused only if a cached one is large enough; the replay is ours",
    ),
    Caveat(
        key="allocator-slack",
        moves="either",
        text="reserved memory and nvidia-smi include what the caching allocator keeps beyond what is in use; under its default settings "
        "that depends on the order of past requests and is not smooth in the length (up to 25 % either way on published runs)",
        source="facts collected from replays against published nvidia-smi figures",
    ),
    Caveat(
        key="peft-benchmark-evaluation",
        moves="under",
        text="the figure covers the whole process: generation for evaluation in batches of 50 (up to 800 tokens, with a KV cache) and, "
        "from 2025-11 on, a loss over 768-token Wikipedia batches, both on top of what training left in the cache",
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
        key="qwen1-code",
        moves="none",
        text="Qwen 1's own modelling code (trust_remote_code), described by the Qwen2 layer of the same shape: rotary embedding and norm "
        "in float32, and one fused c_attn",
        source="Qwen/Qwen-7B modeling_qwen.py",
    ),
    Caveat(
        key="fused-qkv-adapter",
        moves="none",
        text="one LoRA on the fused c_attn (rank*(H+3H) parameters) is described as three on q, k and v (rank*6H)",
    ),
    Caveat(
        key="float32-outputs",
        moves="under",
        text="mixed precision through accelerate: the logits returned by the model are converted to float32 (4 bytes per logit more)",
        source="accelerate utils/operations.py convert_outputs_to_fp32",
    ),
    Caveat(
        key="swift-accuracy",
        moves="under",
        text="ms-swift's compute_loss keeps the logits for a token accuracy (argmax over them) while the loss is alive",
        source="modelscope/ms-swift swift/trainers/trainers.py at 4312aeb28 (2024-01), Seq2SeqTrainer.compute_loss",
    ),
    Caveat(
        key="swift-deletes-long",
        moves="over",
        text="ms-swift's default truncation_strategy was `delete`: samples longer than max_length were dropped, so the longest batch is "
        "somewhat shorter than max_length",
        source="modelscope/ms-swift swift/llm/utils/argument.py at 4312aeb28",
    ),
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
    Caveat(
        key="litgpt-code",
        moves="under",
        text="LitGPT's own modules, not transformers': LoRA on the fused qkv is zero-padded to its whole width, and scaling and adding it "
        "make copies of that width; q, k and v are copied out of the fused product; float16 rotary tables turn the rotated halves "
        "into float32; k and v are repeated to all heads; no gradient checkpointing on one GPU",
        source="Lightning-AI/litgpt at 8641822, lit_gpt/lora.py (LoRAQKVLinear.zero_pad), model.py (CausalSelfAttention, build_rope_cache)",
    ),
    Caveat(
        key="litgpt-logits",
        moves="under",
        text="LitGPT chunks the loss, but Fabric turns every chunk's logits into float32, and they and their log-softmax stay until the "
        "backward: 8 bytes per logit that we leave out",
        source="Lightning-AI/litgpt at 8641822, lit_gpt/utils.py chunked_cross_entropy, finetune/lora.py lm_head_chunk_size=128; "
        "lightning-fabric 2.1 HalfPrecision.convert_output",
    ),
    Caveat(
        key="bnb-keeps-inputs",
        moves="under",
        text="bitsandbytes before 0.43 kept the input of every 4-bit layer until its backward: without checkpointing 2*(3H+I) bytes per "
        "token and layer more (1.8 GiB for Llama-2-7B at 1,304 tokens)",
        source="bitsandbytes 0.41.1, 0.42.0 and 0.43.3 autograd/_functions.py MatMul4Bit.forward: ctx.tensors = (A, B), later (None, B)",
    ),
    Caveat(
        key="litgpt-quantized-head",
        moves="under",
        text="LitGPT quantises lm_head as well and dequantises it, first to float16 and then to bfloat16, for every chunk of the loss",
        source="lightning-fabric 2.1 BitsandbytesPrecision (_quantize_weight: torch.half), bitsandbytes 0.42 MatMul4Bit",
    ),
    Caveat(
        key="torchtune-code",
        moves="none",
        text="torchtune's own modules in pure bfloat16 (no autocast, adapters bfloat16 too)",
        source="pytorch/torchtune at 1814feb17, recipes/lora_finetune_single_device.py",
    ),
    Caveat(
        key="torchtune-logits",
        moves="under",
        text="torchtune's chunked loss keeps the whole logits in bfloat16 and a log-softmax per chunk; we count none of them",
        source="pytorch/torchtune at 1814feb17, torchtune/modules/loss/ce_chunked_output_loss.py, modules/transformer.py chunked_output",
    ),
    Caveat(key="torch-compile", moves="over", text="torch.compile fuses pointwise operations, which then save fewer tensors"),
    Caveat(key="torchao-nf4", moves="none", text="torchao's NF4, whose scales are kept otherwise than bitsandbytes'"),
    Caveat(
        key="unsloth-code",
        moves="over",
        text="Unsloth's hand-written layers and kernels save fewer tensors than transformers', and its checkpoints go to host memory",
    ),
    Caveat(
        key="unsloth-logits",
        moves="under",
        text="Unsloth before 2024-11 kept whole logits (its cross entropy worked on them in place, and accelerate copied them to float32); "
        "we count none",
        source="unslothai/unsloth at 2024-09, kernels/cross_entropy_loss.py; cut cross entropy came on 2024-11-17",
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
