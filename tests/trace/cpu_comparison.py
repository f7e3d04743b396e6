"""Compare traces with real steps on the CPU: `python cpu_comparison.py [NAME ...]` prints one JSON line for each configuration.

A process of its own: first every real step (torch's allocations as `torch.profiler` records them), then torch is patched and the same
steps are traced on fake tensors with the CPU's kernels. Small models; peaks are those of one step, above what was there before it.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from typing import Any

os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", TQDM_DISABLE="1", TRL_EXPERIMENTAL_SILENCE="1")

from llamamath.planner.architecture import Architecture
from llamamath.planner.job import Job, Lora
from llamamath.planner.trace.request import TraceRequest, request_for

_SIZES: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "vocab_size": 1000,
}
_COMMON: dict[str, Any] = {"name": "small", "num_key_value_heads": 4, "head_dim": 32, "max_position_embeddings": 4096}
MODELS = {
    "llama": Architecture(family="llama", tie_word_embeddings=True, **_SIZES, **_COMMON),
    "qwen2": Architecture(family="qwen2", tie_word_embeddings=False, attention_bias=True, **_SIZES, **_COMMON),
    "qwen3": Architecture(family="qwen3", tie_word_embeddings=True, query_key_norm=True, **_SIZES, **_COMMON),
    "phi3": Architecture(family="phi3", tie_word_embeddings=False, fused_projections=True, **_SIZES, **_COMMON),
    "mistral": Architecture(family="mistral", tie_word_embeddings=False, **_SIZES, **_COMMON),
    "granite": Architecture(
        family="granite", tie_word_embeddings=True, scaled_embeddings=True, scaled_residual=True, logits_scaling=8.0, **_SIZES, **_COMMON
    ),
    "gemma2": Architecture(
        family="gemma2",
        tie_word_embeddings=True,
        post_norms=True,
        attn_logit_softcapping=50.0,
        final_logit_softcapping=30.0,
        scaled_embeddings=True,
        **_SIZES,
        **_COMMON,
    ),
}
TILE_WORDS = 128
"""TRL's tiles of 32,768 words would hide everything else in models this small."""
_BASE: dict[str, Any] = {
    "quantization": "none",
    "lora": Lora(r=8, dtype="bfloat16"),
    "padding": False,
    "mixed_precision": False,
    "optim": "adamw_torch_fused",
}
_METHODS: dict[str, dict[str, Any]] = {
    "sft": {"per_device_train_batch_size": 2, "max_length": 256},
    "dpo": {"per_device_train_batch_size": 1, "max_length": 256},
    "grpo": {"per_device_train_batch_size": 2, "max_prompt_length": 64, "max_completion_length": 192, "num_generations": 2},
}
_PLAIN = {"stack": "transformers-5", "loss": "full"}
_VARIANTS: list[tuple[str, str, dict[str, Any]]] = [
    ("llama", "sft", {}),
    ("llama", "sft", {"gradient_checkpointing": False}),
    ("llama", "sft", {"quantization": "nf4-dq"}),
    ("llama", "sft", {"quantization": "nf4", "gradient_checkpointing": False}),
    ("llama", "sft", {"padding": True, "gradient_checkpointing": False}),
    ("llama", "sft", {"use_reentrant": True}),
    ("llama", "sft", {"lora": None}),
    ("llama", "sft", {"lora": None, "gradient_checkpointing": False}),
    ("llama", "sft", {"lora": None, "optim": "sgd", "gradient_accumulation_steps": 2}),
    ("llama", "sft", {"lora": None, "dtype": "float32"}),
    ("llama", "sft", {"attn_implementation": "eager", "gradient_checkpointing": False}),
    ("llama", "sft", _PLAIN),
    ("llama", "sft", {**_PLAIN, "gradient_checkpointing": False, "quantization": "nf4-dq"}),
    # float32: the CPU makes copies to multiply bfloat16 with DoRA's float32 magnitudes, CUDA casts inside the kernel
    ("llama", "sft", {"lora": Lora(r=8, dtype="float32", use_dora=True), "dtype": "float32"}),
    ("llama", "sft", {"quantization": "nf4-dq", "kbit_preparation": True}),
    ("llama", "dpo", {}),
    ("llama", "dpo", {"quantization": "nf4-dq", "gradient_checkpointing": False}),
    ("llama", "dpo", {"precompute_ref_log_probs": True}),
    ("llama", "dpo", {"lora": None}),
    ("llama", "grpo", {}),
    ("llama", "grpo", {"beta": 0.04, "quantization": "nf4-dq"}),
    ("llama", "grpo", {"lora": None, "gradient_checkpointing": False}),
    ("llama", "grpo", {"lora": None, "beta": 0.04}),
    ("qwen2", "sft", {}),
    ("qwen2", "sft", {"gradient_checkpointing": False, "quantization": "nf4-dq"}),
    ("qwen2", "sft", {"lora": None}),
    ("qwen2", "dpo", {"gradient_checkpointing": False}),
    ("qwen2", "grpo", {"quantization": "nf4-dq"}),
    ("qwen2", "grpo", {"lora": None, "gradient_accumulation_steps": 2}),
    ("granite", "sft", {"gradient_checkpointing": False}),
    ("granite", "grpo", {"lora": None}),
    ("gemma2", "sft", {}),
    ("gemma2", "sft", {"lora": None, "gradient_checkpointing": False}),
    ("gemma2", "dpo", {"quantization": "nf4-dq"}),
    ("gemma2", "grpo", {"gradient_checkpointing": False}),
    ("qwen3", "sft", {"gradient_checkpointing": False, "quantization": "nf4-dq"}),
    ("qwen3", "grpo", {}),
    ("phi3", "sft", {"gradient_checkpointing": False}),
    ("phi3", "dpo", {"quantization": "nf4-dq"}),
    ("mistral", "sft", {"padding": True, "quantization": "nf4-dq"}),
    ("mistral", "sft", {"lora": None, **_PLAIN}),
]


def _name(model: str, method: str, changes: dict[str, Any]) -> str:
    parts = [f"{key}={'dora' if isinstance(value, Lora) else value}" for key, value in changes.items()]
    return " ".join([model, method, *parts])


CASES = {_name(model, method, changes): (model, method, changes) for model, method, changes in _VARIANTS}


def request_of(name: str) -> TraceRequest:
    """The request of that configuration, with the CPU's kernels."""
    model, method, changes = CASES[name]
    job = Job(model=model, method=method, **(_BASE | _METHODS[method] | changes))
    request = request_for(job, MODELS[model])
    return TraceRequest(job=job, config=request.config, autocast=False, attention=request.attention, cpu_kernels=True)


MARK_BYTES = {"score": 70_001, "forward": 70_003, "backward": 70_005, "optimizer": 70_007, "between": 70_009}
"""A real step marks its phases by an allocation of an unmistakable size, which the profiler sees."""
Peaks = dict[str, int]


def real_peaks(request: TraceRequest) -> Peaks:
    """Bytes above the start at the worst instant of each phase of a real second step."""
    import torch
    from torch._C._profiler import _EventType
    from transformers import masking_utils

    from llamamath.planner.trace.model import finish, make_config, needs_reference_model
    from llamamath.planner.trace.optimizers import PagedMemory, make_optimizer
    from llamamath.planner.trace.steps import Steps

    masking_utils.fast_all = lambda tensor: not request.job.padding
    state = torch.get_rng_state()
    torch.get_rng_state = lambda: state  # checkpointing keeps a copy for each layer: host memory on a GPU, 5,056 bytes each here
    config = make_config(request.config)
    model = _real_model(request, config)
    reference = None
    if needs_reference_model(request.job):
        reference = _real_model(request, config).eval().requires_grad_(False)
    built = finish(request, model, reference, config, None)
    optimizer = make_optimizer(request.job.optim, built, PagedMemory())
    steps = Steps(request, built, lambda phase, detail: bytes_of(phase), lambda count: None)
    steps.train(optimizer)
    gc.collect()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        steps.train(optimizer)
    found, pending = [], list(profile.profiler.kineto_results.experimental_event_tree())
    while pending:
        event = pending.pop()
        pending.extend(event.children)
        if event.tag == _EventType.Allocation:
            found.append((event.start_time_ns, event.extra_fields.alloc_size))
    phases = {size: phase for phase, size in MARK_BYTES.items()}
    current, phase, peaks = 0, "start", dict[str, int]()
    for _, size in sorted(found, key=lambda pair: pair[0]):
        if abs(size) in phases:
            phase = phases[abs(size)]
            peaks.setdefault(phase, current)
            continue
        current += size
        peaks[phase] = max(peaks.get(phase, 0), current)
    return {name: peak for name, peak in peaks.items() if name not in ("start", "between")}


def bytes_of(phase: str) -> None:
    """Allocate and free as many bytes as mark that phase."""
    import torch

    torch.empty(MARK_BYTES[phase], dtype=torch.uint8)


def _real_model(request: TraceRequest, config: Any) -> Any:
    import copy

    import bitsandbytes as bnb
    import torch

    from llamamath.planner.trace.model import DTYPES, auto_class
    from llamamath.planner.trace.quantized import is_converted, unconverted_modules

    job = request.job
    model = auto_class(config).from_config(copy.deepcopy(config), dtype=DTYPES[job.dtype], attn_implementation=request.attention)
    if job.quantization == "none":
        return model
    kept = unconverted_modules(model)
    for name, module in list(model.named_modules()):
        if type(module) is torch.nn.Linear and is_converted(name, kept):
            nested = job.quantization == "nf4-dq"
            layer = bnb.nn.Linear4bit(
                module.in_features, module.out_features, bias=module.bias is not None, compute_dtype=torch.bfloat16, quant_type="nf4",
                compress_statistics=nested,
            )  # fmt: skip
            layer.weight = bnb.nn.Params4bit(
                module.weight.data, requires_grad=False, quant_type="nf4", compress_statistics=nested, module=layer
            )
            if module.bias is not None:
                layer.bias = module.bias
            layer.to("cpu")
            layer.support_avx512bf16_for_cpu = False  # else bitsandbytes 0.50.2 packs the weight in a no-grad forward, for good
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, layer)
    model.is_loaded_in_4bit = model.is_quantized = True
    model.quantization_method = "bitsandbytes"
    return model


def traced_peaks(request: TraceRequest) -> Peaks:
    """The same of the traced step. In a fork, because tracing patches torch."""
    from llamamath.planner.trace.running import run

    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        try:
            text = json.dumps(_step_peaks(run(request, {}).stream))
        except BaseException as error:
            text = json.dumps({f"{type(error).__name__}: {error}": 0})
        with os.fdopen(write, "w") as file:
            file.write(text)
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as file:
        text = file.read()
    os.waitpid(child, 0)
    return dict(json.loads(text))


def _step_peaks(stream: Any) -> Peaks:
    events = list(stream.events())
    current, base, started, peaks = 0, 0, False, dict[str, int]()
    for start, end, mark in stream.phases():
        if mark.phase == "between" and not started:
            base, started = current, True
        for kind, _, size in events[start:end]:
            if started and mark.phase in MARK_BYTES:
                peaks[mark.phase] = max(peaks.get(mark.phase, 0), current - base)
            current += size if kind == "alloc" else -size
        if started and mark.phase in MARK_BYTES:
            peaks[mark.phase] = max(peaks.get(mark.phase, 0), current - base)
    peaks.pop("between", None)
    return peaks


def main(names: list[str]) -> None:
    """Every configuration, or those named."""
    import torch
    import torch._dynamo  # noqa: F401
    import trl.trainer.utils

    torch.set_num_threads(1)
    trl.trainer.utils._CHUNKED_LOGPROB_CHUNK_SIZE = TILE_WORDS
    for name in names or list(CASES):
        torch.manual_seed(0)
        try:
            request = request_of(name)
            line: dict[str, object] = {"name": name, "real": real_peaks(request), "traced": traced_peaks(request)}
        except Exception as error:
            line = {"name": name, "error": f"{type(error).__name__}: {error}"[:500]}
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
