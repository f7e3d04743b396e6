"""Prints what one decoder layer keeps for its backward, in bytes per token, as a sum of multiples of the model's widths.

    python benchmarks/layer_coefficients.py

The memory model walks a layer symbolically; this script reads off the coefficients by finite differences in hidden_size (H),
intermediate_size (I), the width of k (KV), the LoRA rank (r) and the number of heads (a). docs/memory-model.md quotes its output.
"""

from __future__ import annotations

from dataclasses import replace

from llamamath.planner.architecture import Architecture
from llamamath.planner.job import Job, Lora
from llamamath.planner.memory.from_job import settings_of
from llamamath.planner.memory.polynomial import TOKENS, coefficients
from llamamath.planner.memory.walk import Walk

BASE = {"H": 4096, "I": 14336, "KV": 1024, "r": 16, "a": 32}


def architecture(widths: dict[str, int]) -> Architecture:
    """A Llama layer of the given widths; q is as wide as the hidden state."""
    return Architecture(
        family="llama",
        name="symbolic",
        vocab_size=32000,
        hidden_size=widths["H"],
        intermediate_size=widths["I"],
        num_hidden_layers=4,
        num_attention_heads=widths["a"],
        num_key_value_heads=widths["a"],
        head_dim=widths["H"] // widths["a"],
        tie_word_embeddings=False,
        max_position_embeddings=8192,
    )


def retained(job: Job, widths: dict[str, int]) -> int:
    """Bytes per token that one layer leaves alive after its forward, output excluded."""
    model = architecture(widths)
    group = max(1, widths["H"] // widths["KV"])
    model = replace(model, num_key_value_heads=max(1, widths["a"] // group))
    if job.lora is not None:
        job = job.changed(lora=replace(job.lora, r=widths["r"]))
    walk = Walk(model, settings_of(job, model))
    hidden = walk.graph.allocate(TOKENS * widths["H"], 2)
    walk.graph.attach(hidden, (), lambda grad: ())
    before = walk.ledger.total
    out = walk.layers.self_attention(hidden)
    kept = walk.ledger.total - before - out.numel * out.width
    terms = coefficients(kept)
    return terms[1] if len(terms) > 1 else 0


def formula(job: Job) -> str:
    """`retained` as a sum of multiples of H, I, KV, r and a."""
    base = retained(job, BASE)
    steps = {"H": {"H": 8192, "KV": 2048}, "I": {"I": 28672}, "r": {"r": 32}, "a": {"a": 64}}
    found = {name: (retained(job, BASE | change) - base) / (change[name] - BASE[name]) for name, change in steps.items()}
    narrow = retained(job, BASE | {"KV": 512})
    found["KV"] = (base - narrow) / 512
    found["H"] -= found["KV"] * 0.25  # KV doubled together with H
    rest = base - sum(found[name] * BASE[name] for name in found)
    parts = [f"{value:g}{name}" for name in ("H", "I", "KV", "r", "a") if (value := found[name])]
    return " + ".join(parts) + (f" + {rest:g}" if rest else "")


def main() -> None:
    """One line per configuration."""
    job = Job(model="symbolic", method="sft", max_length=4096, per_device_train_batch_size=4, padding=False, gradient_checkpointing=False)
    lora = Lora()
    print(f"{'configuration':58s} bytes per token and layer")
    for name, changes in (
        ("full fine-tuning, bf16", {"lora": None, "quantization": "none"}),
        ("frozen bf16 base, LoRA on no linear of this layer", {"quantization": "none", "lora": replace(lora, target_modules=("lm_head",))}),
        ("bf16 base, LoRA (fp32 adapters) on all linears", {"quantization": "none", "lora": replace(lora, dtype="float32")}),
        ("NF4 base, LoRA on all linears", {}),
        ("NF4 base, LoRA on q, k, v, o", {"lora": replace(lora, target_modules=("q_proj", "k_proj", "v_proj", "o_proj"))}),
        ("NF4 base, LoRA on all linears, dropout > 0", {"lora": replace(lora, lora_dropout=0.1)}),
        ("NF4 base, LoRA on all linears, DoRA", {"lora": replace(lora, use_dora=True)}),
        ("int8 base, LoRA on all linears", {"quantization": "int8"}),
        ("NF4 base, LoRA, ragged batch (mask): beside the bias", {"padding": True}),
        ("NF4 base, LoRA, prepare_model_for_kbit_training", {"kbit_preparation": True}),
    ):
        print(f"{name:58s} {formula(job.changed(**changes))}")


if __name__ == "__main__":
    main()
