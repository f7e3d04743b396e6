"""A made-up published run, a made-up model, and what stands between them and a comparison."""

from __future__ import annotations

from llamamath.errors import UnknownNameError
from llamamath.planner.accuracy.compare import Accuracy, compare
from llamamath.planner.accuracy.jobs import Excluded, MappedRun, row_to_job
from llamamath.planner.accuracy.rows import PublishedRun, parse_run
from llamamath.planner.architecture import Architecture
from llamamath.planner.estimate import Estimate, HostMemory, Peak
from llamamath.units import GIB

TINY = Architecture(
    family="llama", name="tiny", vocab_size=1000, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=16, tie_word_embeddings=False, max_position_embeddings=512,
)  # fmt: skip
FMS: dict[str, object] = {
    "id": "made-up", "source": "fms-acceleration scripts/benchmarks", "model": "org/tiny", "gpu": "NVIDIA A100-SXM4-80GB", "gpu_count": 1,
    "framework": "torch 2.4.1 transformers 4.48.1 trl 0.13.0 peft 0.13.2", "method": "qlora", "quant": "nf4-dq",
    "dtype": "weights bfloat16; amp bf16", "lora_rank": 16, "lora_targets": ["q_proj", "k_proj", "v_proj", "o_proj"], "micro_batch": 4,
    "grad_accum": 1, "seq_len": 4096, "seq_len_kind": "exact, packed", "grad_checkpointing": True, "optimizer": "adamw_torch (foreach)",
    "attn": "flash_attention_2", "flags": {"config": "baseline-peft-bnb", "packing": True}, "measured_bytes": 10 * GIB,
    "measure": "torch.cuda.max_memory_allocated", "oom": False, "extra": {"nvidia_smi_peak_MiB": 12000},
}  # fmt: skip


def known(name: str) -> Architecture:
    """A resolver that knows one model."""
    if name == "org/tiny":
        return TINY
    raise UnknownNameError("model", name, ())


def run(**changes: object) -> PublishedRun:
    return parse_run(FMS | changes)


def mapped(**changes: object) -> MappedRun:
    result = row_to_job(run(**changes), known)
    assert isinstance(result, MappedRun), result
    return result


def excluded(**changes: object) -> str:
    result = row_to_job(run(**changes), known)
    assert isinstance(result, Excluded), result
    return result.reason


def estimate(allocated: int, *, reserved: int = 0, device: int = 0, low: int = 0, high: int = 0, parameters: int = 1000) -> Estimate:
    device = device or allocated
    peak = Peak(
        phase="backward",
        allocated_bytes=allocated,
        reserved_bytes=reserved or allocated,
        device_bytes=device,
        low_bytes=low or device,
        high_bytes=high or device,
    )
    return Estimate(phases=(), peak=peak, host=HostMemory(peak_bytes=1), trainable_parameters=10, total_parameters=parameters)


def accuracy(rows: list[PublishedRun], prediction: Estimate) -> Accuracy:
    return compare(rows, lambda job, architecture, conditions: prediction, resolve=known, capacity=lambda row: 80 * GIB)
