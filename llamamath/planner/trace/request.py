"""What the parent asks of the worker: a job, the model's transformers configuration, and the card whose rules the kernels follow."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

from llamamath.errors import UsageError
from llamamath.planner.architecture import Architecture, VisionArchitecture
from llamamath.planner.job import Job
from llamamath.planner.job_files.job_file import parse_job
from llamamath.planner.job_files.job_text import job_to_dict
from llamamath.planner.memory.from_job import attention_kernel, fused_kernels, is_masked, mixed_precision

OLD_STACKS = ("transformers-4.48", "transformers-4.45")
DEFAULT_CAPABILITY = (8, 0)
DEFAULT_MULTIPROCESSORS = 108
"""An A100's, where the device does not say: bitsandbytes chooses between its fused kernel and dequantising by these two."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceRequest:
    """One trace. `config` holds the keyword arguments of transformers' configuration class, `model_type` among them."""

    job: Job
    config: dict[str, Any]
    autocast: bool
    attention: str
    """transformers' `attn_implementation` that really runs: `sdpa`, `flash_attention_2` or `eager`."""
    capability: tuple[int, int] = DEFAULT_CAPABILITY
    multiprocessors: int = DEFAULT_MULTIPROCESSORS
    scored_tokens: int | None = None
    """Tokens of a micro-batch that enter the loss. None: all that can."""
    cpu_kernels: bool = False
    """Run the CPU's kernels instead of the GPU's: only to compare with a real step on the CPU."""
    steps: int = 1

    def to_json(self) -> str:
        """One line of JSON."""
        values = {name: getattr(self, name) for name in self.__slots__} | {"job": job_to_dict(self.job)}
        return json.dumps(values, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> TraceRequest:
        """The request written by `to_json`."""
        values = json.loads(text)
        values |= {"job": parse_job(values["job"], source="trace request"), "capability": tuple(values["capability"])}
        return cls(**values)

    def key(self, versions: dict[str, str], trace_version: int) -> str:
        """A name for the cached result: equal for equal requests under equal versions."""
        document = json.dumps([self.to_json(), versions, trace_version], sort_keys=True)
        return hashlib.sha256(document.encode()).hexdigest()[:32]


def why_not(job: Job, architecture: Architecture) -> str | None:
    """Why this job cannot be traced, or None: what no installed library does cannot be run."""
    if job.offload:
        return f"offload ({', '.join(job.offload)}) is this project's own code and is not traced"
    if fused_kernels(job):
        return "fms-acceleration's fused kernels are not installed, so they cannot be traced"
    if job.loss == "liger" and job.stack != "trl-1.16":
        return "Liger's loss is a set of Triton kernels and is not traced"
    if architecture.vision is not None and job.attn_implementation == "flash_attention_2":
        return "transformers' Mllama refuses flash_attention_2"
    return None


def request_for(job: Job, architecture: Architecture, *, capability: tuple[int, int] | None = None) -> TraceRequest:
    """The request that traces `job` on `architecture`. Raises UsageError if that cannot be traced."""
    reason = why_not(job, architecture)
    if reason is not None:
        raise UsageError(f"this job cannot be traced: {reason}", "use the formula: leave out --verify trace")
    masked = is_masked(job, architecture)
    eager = attention_kernel(job, architecture, masked) == "eager"
    return TraceRequest(
        job=job,
        config=model_config(architecture),
        autocast=mixed_precision(job),
        attention="eager" if eager else job.attn_implementation,
        capability=capability or DEFAULT_CAPABILITY,
    )


def model_config(architecture: Architecture) -> dict[str, Any]:
    """The keyword arguments with which transformers' configuration class builds this architecture."""
    a = architecture
    config: dict[str, Any] = {
        "vocab_size": a.vocab_size,
        "hidden_size": a.hidden_size,
        "intermediate_size": a.intermediate_size,
        "num_hidden_layers": a.num_hidden_layers,
        "num_attention_heads": a.num_attention_heads,
        "num_key_value_heads": a.num_key_value_heads,
        "max_position_embeddings": a.max_position_embeddings,
        "tie_word_embeddings": a.tie_word_embeddings,
    }
    if a.family == "mllama":
        return _mllama_config(a, config)
    config |= {"model_type": a.family, "head_dim": a.head_dim}
    if a.family in ("llama", "qwen3", "gemma2", "granite"):
        config["attention_bias"] = a.attention_bias
    if a.family in ("llama", "granite"):
        config["mlp_bias"] = a.mlp_bias
    if a.family == "granite":
        config |= {"embedding_multiplier": 12.0, "residual_multiplier": 0.22, "logits_scaling": a.logits_scaling or 1.0}
    if a.family == "gemma2":
        config |= {"attn_logit_softcapping": a.attn_logit_softcapping, "final_logit_softcapping": a.final_logit_softcapping}
    if a.family == "phi3":
        config |= {"pad_token_id": 0, "original_max_position_embeddings": a.max_position_embeddings}
        if a.partial_rotary_factor != 1.0:
            config["partial_rotary_factor"] = a.partial_rotary_factor
    if a.family in ("qwen2", "qwen3", "gemma2", "mistral", "phi3"):
        config["sliding_window"] = a.sliding_window
    if a.family in ("qwen2", "qwen3", "gemma2"):
        sliding = set(a.sliding_layers)
        config["layer_types"] = ["sliding_attention" if i in sliding else "full_attention" for i in range(a.num_hidden_layers)]
        if a.family != "gemma2":
            config["use_sliding_window"] = bool(sliding)
        elif not sliding:  # transformers builds a sliding mask for gemma2 whether or not a layer uses it
            config["sliding_window"] = a.max_position_embeddings
    return config


def _mllama_config(a: Architecture, text: dict[str, Any]) -> dict[str, Any]:
    text |= {
        "model_type": "mllama_text_model",
        "cross_attention_layers": list(a.cross_attention_layers),
        "rope_parameters": {"rope_theta": 500000.0, "rope_type": "default"},
        "pad_token_id": min(128004, a.vocab_size - 1),
    }
    config: dict[str, Any] = {"model_type": "mllama", "text_config": text}
    if a.vision is None:
        return text
    config["vision_config"] = _vision_config(a.vision)
    return config


def _vision_config(vision: VisionArchitecture) -> dict[str, Any]:
    values = asdict(vision)
    ratios = values.pop("max_aspect_ratio_id")
    values["intermediate_layers_indices"] = list(vision.intermediate_layers_indices)
    tiles = vision.max_num_tiles
    shapes = [[height, width] for height in range(1, tiles + 1) for width in range(1, tiles + 1) if height * width <= tiles]
    shapes += [[1, 1]] * max(0, ratios - len(shapes))
    return values | {"vision_output_dim": vision.output_dim, "supported_aspect_ratios": shapes[:ratios]}
