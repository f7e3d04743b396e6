"""Random jobs across families, methods and knobs, for comparing the formula with the trace. Seeded, so a number names a job."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

from llamamath.planner.architecture import Architecture
from llamamath.planner.job import Job, Lora
from llamamath.planner.model_files.config_file import resolve_model
from llamamath.planner.trace.request import why_not

MODELS = {
    "llama": ("meta-llama/Llama-3.2-1B", "meta-llama/Llama-3.2-3B", "meta-llama/Llama-3.1-8B"),
    "qwen2": ("Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-1.5B", "Qwen/Qwen2.5-7B"),
    "qwen3": ("Qwen/Qwen3-0.6B", "Qwen/Qwen3-1.7B", "Qwen/Qwen3-8B"),
    "mistral": ("mistralai/Mistral-7B-v0.1", "mistralai/Mistral-7B-v0.3"),
    "gemma2": ("google/gemma-2-2b", "google/gemma-2-9b"),
    "phi3": ("microsoft/Phi-3-mini-4k-instruct",),
    "granite": ("ibm-granite/granite-3.1-2b-instruct", "ibm-granite/granite-3.2-8b-instruct"),
    "mllama": ("meta-llama/Llama-3.2-11B-Vision",),
}
TARGETS = ("all-linear", ("q_proj", "k_proj", "v_proj", "o_proj"), ("q_proj", "v_proj"))
OPTIMIZERS = ("adamw_torch_fused", "adamw_torch", "adamw_8bit", "paged_adamw_8bit")


def random_job(number: int, *, layers: tuple[int, ...] = ()) -> tuple[Job, Architecture]:
    """Job `number` and its architecture. layers: cut the model to one of these depths, to be quick; () leaves it whole."""
    for attempt in range(1000):
        chance = random.Random(number * 1000 + attempt)
        found = _draw(chance, layers)
        if found is not None and why_not(*found) is None:
            return found
    raise AssertionError(f"no job {number}")


def _draw(chance: random.Random, layers: tuple[int, ...]) -> tuple[Job, Architecture] | None:
    family = chance.choice(tuple(MODELS))
    architecture = resolve_model(chance.choice(MODELS[family]))
    if layers:
        architecture = cut(architecture, chance.choice(layers))
    method = chance.choice(("sft", "dpo", "grpo"))
    quantization = chance.choice(("none", "nf4", "nf4-dq", "nf4-dq", "int8"))
    full = quantization == "none" and chance.random() < 0.4
    plain = method == "sft" and chance.random() < 0.25
    dtype = "bfloat16" if quantization == "none" else chance.choice(("bfloat16", "float32"))
    lora = Lora(
        r=chance.choice((8, 16, 64)),
        lora_dropout=chance.choice((0.0, 0.0, 0.05)),
        target_modules=TARGETS[0] if family == "phi3" else chance.choice(TARGETS),
        dtype=dtype,
    )
    values: dict[str, Any] = {
        "quantization": quantization,
        "lora": None if full else lora,
        "per_device_train_batch_size": chance.choice((1, 2, 4, 8)),
        "gradient_accumulation_steps": chance.choice((1, 4)),
        "padding": chance.random() < 0.6,
        "gradient_checkpointing": chance.random() < 0.7,
        "use_reentrant": chance.random() < 0.2,
        "attn_implementation": chance.choice(("sdpa", "sdpa", "flash_attention_2", "eager")),
        "optim": chance.choice(OPTIMIZERS),
    }
    if plain:
        values |= {"stack": "transformers-5", "loss": "full"}
    if method == "grpo":
        values |= {
            "max_prompt_length": chance.choice((128, 512)),
            "max_completion_length": chance.choice((256, 1024)),
            "num_generations": 2,
        }
        values |= {"beta": chance.choice((0.0, 0.04))}
        if values["per_device_train_batch_size"] * values["gradient_accumulation_steps"] % 2:
            return None
    else:
        values |= {"max_length": chance.choice((512, 1024, 2048))}
    if method == "dpo":
        values |= {"beta": 0.1, "precompute_ref_log_probs": chance.random() < 0.4}
    if family == "mllama":
        values |= {"num_images": chance.choice((0, 0, 1))}
    return Job(model=architecture.name, method=method, **values), architecture


def cut(architecture: Architecture, layers: int) -> Architecture:
    """The same widths with fewer layers."""
    keep = {name: tuple(i for i in getattr(architecture, name) if i < layers) for name in ("sliding_layers", "cross_attention_layers")}
    return replace(architecture, num_hidden_layers=layers, **keep)
