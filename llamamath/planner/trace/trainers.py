"""Stand-ins for TRL's trainers: the attributes that their loss methods read, so that TRL 1.16's own code computes the loss. Worker only.

The losses are called unbound: `SFTTrainer.compute_loss`, `DPOTrainer._compute_loss`, `GRPOTrainer._compute_loss` and
`GRPOTrainer._get_per_token_logps_and_entropies`, without the profiling decorators around them.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import torch

from llamamath.planner.trace.request import TraceRequest


def undecorated(function: Any) -> Any:
    """The function inside `profiling_decorator`."""
    return getattr(function, "__wrapped__", function)


def _accelerator(request: TraceRequest) -> SimpleNamespace:
    dtype = torch.float16 if request.job.dtype == "float16" else torch.bfloat16

    def autocast() -> Any:
        return torch.autocast("cuda", dtype=dtype) if request.autocast else contextlib.nullcontext()

    return SimpleNamespace(
        autocast=autocast,
        gather=lambda tensor: tensor,
        gather_for_metrics=lambda tensor: tensor,
        reduce=lambda tensor, reduction="sum": tensor,
        num_processes=1,
        sync_gradients=True,
        unwrap_model=lambda model: model,
        parallelism_config=None,
        device=torch.device("cpu" if request.cpu_kernels else "cuda"),
        is_main_process=True,
    )


def _metrics() -> dict[str, Any]:
    return {"train": defaultdict(list), "eval": defaultdict(list)}


def sft_trainer(request: TraceRequest, model: Any) -> SimpleNamespace:
    """An SFTTrainer with its defaults (loss_type nll)."""
    return SimpleNamespace(
        accelerator=_accelerator(request),
        model=model,
        aux_loss_enabled=False,
        compute_loss_func=None,
        label_smoother=None,
        current_gradient_accumulation_steps=1,
        _metrics=_metrics(),
        _total_train_tokens=0,
        _tp_size=1,
        get_tp_size=lambda: 1,
        args=SimpleNamespace(loss_type="nll", average_tokens_across_devices=True, max_length=None),
    )


def dpo_trainer(request: TraceRequest, model: Any, reference: Any) -> SimpleNamespace:
    """A DPOTrainer with its defaults (sigmoid loss)."""
    job = request.job
    return SimpleNamespace(
        accelerator=_accelerator(request),
        model=model,
        aux_loss_enabled=False,
        ref_model=reference,
        ld_alpha=None,
        precompute_ref_logps=job.precompute_ref_log_probs,
        f_divergence_type="reverse_kl",
        loss_types=["sigmoid"],
        loss_weights=[1.0],
        beta=job.beta or 0.1,
        label_smoothing=0.0,
        use_weighting=False,
        _metrics=_metrics(),
        _total_train_tokens=0,
        _tp_size=1,
        args=SimpleNamespace(gradient_checkpointing_kwargs={"use_reentrant": job.use_reentrant}, discopop_tau=0.05),
    )


def grpo_trainer(request: TraceRequest, model: Any) -> SimpleNamespace:
    """A GRPOTrainer with its defaults (dapo loss, token-level importance sampling)."""
    from trl import GRPOTrainer

    job = request.job
    steps = job.steps_per_generation or job.gradient_accumulation_steps
    trainer = SimpleNamespace(
        accelerator=_accelerator(request),
        args=SimpleNamespace(delta=None, use_bias_correction_kl=False, steps_per_generation=steps),
        model=model,
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level="token",
        beta=job.beta,
        loss_type="dapo",
        epsilon_low=0.2,
        epsilon_high=0.2,
        use_vllm=False,
        vllm_importance_sampling_correction=False,
        current_gradient_accumulation_steps=job.gradient_accumulation_steps,
        max_completion_length=job.max_completion_length,
        _entropy_bonus_enabled=False,
        _metrics=_metrics(),
    )
    scored = undecorated(GRPOTrainer._get_per_token_logps_and_entropies)
    trainer._get_per_token_logps_and_entropies = lambda *args, **kwargs: scored(trainer, *args, **kwargs)
    return trainer
