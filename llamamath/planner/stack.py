"""A Stack: the memory habits of one set of library versions, as data. Only habits that change bytes and that a job does not state.

The rows, each with its sources, are in `profiles/stacks.toml`. A job file may name those in `job.STACKS`; the others describe published
runs of other people's training code (`planner/accuracy`).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from typing import Any

from llamamath.errors import UnknownNameError, closest_names
from llamamath.profiles.toml_data import read_toml


class LogitsPath(StrEnum):
    """Which tensors as large as the logits a loss keeps alive."""

    TRL_CHUNKED = "trl_chunked"
    """None: tiles of min(N, 4096) tokens by 32,768 words in the compute dtype."""
    LIGER = "liger"
    """None beyond a chunk: Liger's fused linear cross entropy."""
    HF5_FULL = "hf5_full"
    """transformers 5: logits, their float32 copy, the log-softmax; labels are shifted, logits are not."""
    HF448_FULL = "hf448_full"
    """transformers 4.48: as above, and a shifted float32 copy of the logits."""
    HF445_FULL = "hf445_full"
    """transformers 4.45: float32 logits only (the model-dtype ones are freed), a shifted copy, the log-softmax."""
    LITGPT_CHUNKED = "litgpt_chunked"
    """LitGPT's LoRA script: lm_head and loss in chunks of 128 positions, whose float32 logits and log-softmax all stay alive."""
    LITGPT_FULL = "litgpt_full"
    """LitGPT's full fine-tuning script: float32 logits, their shifted copy, a log-softmax per chunk, all alive."""
    UNSLOTH_FULL = "unsloth_full"
    """Unsloth before cut cross entropy: model-dtype logits, which the loss's gradient overwrites; accelerate's float32 copy of them."""
    TORCHTUNE_CHUNKED = "torchtune_chunked"
    """torchtune: model-dtype logits in 8 chunks; each chunk's float32 log-softmax stays until the backward."""
    TORCHTUNE_COMPILED = "torchtune_compiled"
    """The same with `compile`: the fused loss keeps the model-dtype logits only."""
    TORCHTUNE_FULL = "torchtune_full"
    """torchtune's plain loss: float32 logits (the model-dtype ones are freed at once) and the log-softmax."""


_WHOLE_LOGITS = {  # path: (keeps the model-dtype logits beside the float32 ones, makes a shifted copy)
    LogitsPath.HF5_FULL: (True, False),
    LogitsPath.HF448_FULL: (True, True),
    LogitsPath.HF445_FULL: (False, True),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LogitsCopies:
    """Tensors of [batch, tokens, vocabulary] alive at the two worst instants of a whole-logits loss, in bytes per logit."""

    end_of_forward: int
    """While the loss is computed (`nll_loss`): what the forward still holds, the log-softmax included."""
    in_backward: int
    """In `log_softmax`'s backward: the saved log-softmax, the gradient coming in, the gradient going out; all float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """One row of `stacks.toml`. `*_default` is what the library does where its user says nothing."""

    name: str
    versions: str
    methods: tuple[str, ...]
    losses: tuple[str, ...]
    default_loss: str
    full_loss: LogitsPath
    """What `loss: full` means here."""
    chunked_loss: LogitsPath
    """What `loss: chunked` means here, if it is among `losses`."""
    layers: str
    """Whose modelling code runs: `transformers`, `litgpt` or `torchtune`."""
    adds_adapter_in_place: bool
    """The adapter's output is added into the base layer's (PEFT before 0.9), not to a new tensor."""
    quantized_linear_keeps_input: bool
    """Every 4-bit layer keeps its input outside autograd's saved tensors (bitsandbytes before 0.43), where no checkpointing frees it."""
    small_batch_4bit_kernel: bool
    """Up to 1,536 rows a 4-bit layer may multiply without dequantising its weight (bitsandbytes since 0.46)."""
    dequantizes_through_float16: bool
    """4-bit weights are dequantised to float16 and then cast (Lightning Fabric quantises from float16)."""
    quantizes_lm_head: bool
    """lm_head is a 4-bit layer too (Lightning Fabric replaces every linear)."""
    keeps_last_graph: bool
    """The training loop holds the last micro-batch's loss, and so its graph, until the next one's loss exists."""
    expandable_segments: bool
    """The allocator runs with `expandable_segments:True`."""
    mixed_precision_default: bool
    """Autocast around the forward."""
    quantized_adapter_dtype: str
    """dtype of trainable LoRA matrices on a quantised base."""
    unquantized_adapter_dtype: str
    kbit_preparation_keeps_embeddings_float32: bool
    """After `prepare_model_for_kbit_training`, embeddings and lm_head stay float32 (else cast back to bfloat16). Norms always stay."""
    copies_given_adapter_as_reference: bool
    """GRPO with beta != 0 and DPO add a frozen float32 copy of an adapter that was in the model before the trainer saw it."""
    gradient_checkpointing_default: bool
    use_reentrant_default: bool
    optim_default: str
    per_device_eval_batch_size_default: int
    source: str
    accessed: str

    def adapter_dtype(self, quantization: str) -> str:
        """dtype this stack keeps LoRA matrices in, given a job's `quantization`."""
        return self.unquantized_adapter_dtype if quantization == "none" else self.quantized_adapter_dtype

    def logits_path(self, loss: str) -> LogitsPath:
        """The path of a job's `loss` on this stack. TRL 1.16 turns Liger's own loss off, so there `liger` is the chunked one."""
        if loss == "full":
            return self.full_loss
        chunked = loss == "chunked" or "chunked" in self.losses
        return self.chunked_loss if chunked else LogitsPath.LIGER


def logits_copies(path: LogitsPath, *, logits_dtype_bytes: int, batch_size: int) -> LogitsCopies | None:
    """Bytes per logit of a whole-logits loss; None for a path that never holds them.

    end_of_forward = d [kept] + 4 [float32 copy] + 4 [shifted copy, if any] + 4 [log-softmax]; in_backward = 3 * 4.
    `d` = `logits_dtype_bytes`; a float32 model has no separate float32 copy. Slicing one position off a batch of one row leaves it
    contiguous, so the shifted copy exists only from two rows on. Counted op by op on a CPU (torch 2.13) for batches of 1 and 4; with
    batches above 1 the forward is 14, 12 and 10 bytes for transformers 4.48, 4.45 and 5 in bfloat16, as published A100 runs showed.
    Left out: per-token tensors, and outputs the caller keeps (a Trainer that returns outputs adds `d`, or 4 under autocast).
    """
    if path not in _WHOLE_LOGITS:
        return None
    keeps, shifts = _WHOLE_LOGITS[path]
    separate = logits_dtype_bytes if keeps and logits_dtype_bytes != 4 else 0
    shifted = 4 if shifts and batch_size > 1 else 0
    return LogitsCopies(end_of_forward=separate + 4 + shifted + 4, in_backward=12)


@cache
def _stacks() -> dict[str, Stack]:
    return {row["name"]: _stack(row) for row in read_toml("stacks.toml")["stack"]}


def _stack(row: dict[str, Any]) -> Stack:
    values = {key: value for key, value in row.items() if key != "sources"}
    values |= {"methods": tuple(row["methods"]), "losses": tuple(row["losses"])}
    values |= {name: LogitsPath(row[name]) for name in ("full_loss", "chunked_loss")} | {"accessed": str(row["accessed"])}
    return Stack(**values)


def stack_names() -> tuple[str, ...]:
    """Names of all stacks, the current ones first."""
    return tuple(_stacks())


def find_stack(name: str) -> Stack:
    """The stack of that name. Raises UnknownNameError with the closest names."""
    stack = _stacks().get(name)
    if stack is None:
        raise UnknownNameError("stack", name, closest_names(name, _stacks()), f"known: {', '.join(_stacks())}")
    return stack
