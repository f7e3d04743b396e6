"""The model as the trainer would have it: transformers' own class, quantised layers, PEFT adapters, checkpointing. Worker process only."""

from __future__ import annotations

import copy
import types
from dataclasses import dataclass
from typing import Any

import torch

from llamamath.planner.job import Job, Lora
from llamamath.planner.trace import old_stacks
from llamamath.planner.trace.attention import FLASH2
from llamamath.planner.trace.quantized import is_converted, linear_4bit, linear_8bit, unconverted_modules
from llamamath.planner.trace.request import OLD_STACKS, TraceRequest
from llamamath.planner.trace.tracker import StorageTracker

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
FUSED_HEAD_OUTPUTS = {
    "grpo": ("log_probs", "entropy"),
    "sft": ("log_probs", "entropy", "is_top1"),
    "dpo": ("log_probs", "entropy", "mean_logits", "is_top1"),
}
"""What TRL 1.16's trainers ask of `add_fused_lm_head` (sft_trainer.py:1144, dpo_trainer.py:961, grpo_trainer.py)."""


@dataclass(frozen=True, slots=True)
class Built:
    """The model ready to train, and DPO's or GRPO's separate reference (without LoRA)."""

    model: Any
    base: Any
    reference: Any
    config: Any
    trainable: list[Any]


def make_config(values: dict[str, Any]) -> Any:
    """transformers' configuration object, caching off as trainers set it."""
    import transformers

    values = copy.deepcopy(values)
    kind = values.pop("model_type")
    if kind == "mllama_text_model":
        from transformers.models.mllama.configuration_mllama import MllamaTextConfig

        config: Any = MllamaTextConfig(**values)
    else:
        config = transformers.AutoConfig.for_model(kind, **values)
    config.use_cache = False
    config.get_text_config().use_cache = False
    return config


def build(request: TraceRequest, tracker: StorageTracker) -> Built:
    """Everything that exists before the first step. Labels adapters; phase `load` covers the weights, `build` the rest."""
    job = request.job
    config = make_config(request.config)
    model = load_base(request, config, tracker)
    tracker.mark("build")
    reference = None
    if needs_reference_model(job):
        tracker.mark("load")
        reference = load_base(request, config, tracker)
        tracker.mark("build")
        reference.eval().requires_grad_(False)
    return finish(request, model, reference, config, tracker)


def finish(request: TraceRequest, model: Any, reference: Any, config: Any, tracker: StorageTracker | None) -> Built:
    """Adapters, TRL's head, autocast: what is done to a loaded model (a real one too, in the comparison with a CPU step)."""
    job = request.job
    model = _adapt(job, model, config)
    base = base_of(model)
    _change_heads(job, model, base, reference)
    if request.autocast:
        for each in (model, reference):
            if each is not None:
                _autocast_forward(each, torch.float16 if job.dtype == "float16" else torch.bfloat16)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if tracker is not None:
        for name, parameter in model.named_parameters():
            tracker.relabel(parameter, "lora" if "lora_" in name else "base_weights")
    return Built(model, base, reference, config, trainable)


def needs_reference_model(job: Job) -> bool:
    """TRL loads a second model for the reference only without PEFT: with adapters it switches them off."""
    if job.lora is not None or not job.stack.startswith("trl"):
        return False
    return (job.method == "grpo" and job.beta != 0) or (job.method == "dpo" and not job.precompute_ref_log_probs)


def base_of(model: Any) -> Any:
    """The transformers model inside PEFT's."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


# -- loading


def load_base(request: TraceRequest, config: Any, tracker: StorageTracker) -> Any:
    """transformers' model with weights on the device one after the other, quantised ones replaced as they arrive."""
    from transformers.initialization import no_init_weights

    job = request.job
    dtype = DTYPES[job.dtype]
    implementation = FLASH2 if request.attention == "flash_attention_2" else request.attention
    with no_init_weights(), torch.device("meta"):
        model = auto_class(config).from_config(copy.deepcopy(config), dtype=dtype, attn_implementation=implementation)
    model.tie_weights()  # no_init_weights skips it
    kept = unconverted_modules(model) if job.quantization != "none" else []
    tracker.mark("load")
    placed: dict[int, Any] = {}
    for name, module in list(model.named_modules()):
        if job.quantization != "none" and type(module) is torch.nn.Linear and is_converted(name, kept):
            _place(module, placed, only="bias")
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent) if parent else model, child, _quantize(job, module, dtype))
        else:
            _place(module, placed)
    if job.quantization != "none":
        setattr(model, "is_loaded_in_8bit" if job.quantization == "int8" else "is_loaded_in_4bit", True)
        model.is_quantized, model.quantization_method = True, "bitsandbytes"
    return model


def auto_class(config: Any) -> Any:
    """The auto class a trainer would load this model with."""
    import transformers

    if config.model_type == "mllama_text_model":
        from transformers.models.mllama.modeling_mllama import MllamaForCausalLM

        MllamaForCausalLM.from_config = classmethod(lambda cls, config, **options: cls._from_config(config, **options))
        return MllamaForCausalLM
    return transformers.AutoModelForImageTextToText if config.model_type == "mllama" else transformers.AutoModelForCausalLM


def _place(module: Any, placed: dict[int, Any], only: str | None = None) -> None:
    """Give the module's own parameters and buffers memory; tied ones once."""
    for name, parameter in module._parameters.items():
        if parameter is None or only not in (None, name):
            continue
        if id(parameter) not in placed:
            new = torch.nn.Parameter(torch.empty(parameter.shape, dtype=parameter.dtype, device="cuda"), parameter.requires_grad)
            placed[id(parameter)] = (new, parameter)  # the old one too, so that its id stays taken
        module._parameters[name] = placed[id(parameter)][0]
    for name, buffer in module._buffers.items():
        if buffer is not None:
            module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device="cuda")


def _quantize(job: Job, module: Any, dtype: torch.dtype) -> Any:
    compute = torch.bfloat16 if dtype == torch.float32 else dtype
    layer = (
        linear_8bit(module, dtype)
        if job.quantization == "int8"
        else linear_4bit(module, compute, dtype, nested=job.quantization == "nf4-dq")
    )
    if module.bias is not None:
        layer._parameters["bias"] = module.bias
    return layer


# -- what the trainer does to it


def _adapt(job: Job, model: Any, config: Any) -> Any:
    if job.kbit_preparation:
        model = _prepare_kbit(job, model, config)
    if job.lora is not None:
        model = _add_adapters(job, job.lora, model)
        if job.gradient_checkpointing or job.stack in OLD_STACKS:
            model.enable_input_require_grads()
    elif job.quantization == "none":
        model.requires_grad_(True)
    if job.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": job.use_reentrant})
    return model.train()


def _prepare_kbit(job: Job, model: Any, config: Any) -> Any:
    from peft import prepare_model_for_kbit_training

    model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    if job.stack in OLD_STACKS:  # trl 0.11 and 0.13: peft_module_casting_to_bf16 afterwards
        for name, module in model.named_modules():
            weight = getattr(module, "weight", None)
            if any(part in name for part in ("lm_head", "embed_tokens")) and weight is not None and weight.dtype == torch.float32:
                module.weight = torch.nn.Parameter(weight.detach().to(torch.bfloat16), requires_grad=False)
        if config.get_text_config().tie_word_embeddings:
            model.lm_head.weight = model.model.embed_tokens.weight
    return model


def _add_adapters(job: Job, lora: Lora, model: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    targets = lora.target_modules if isinstance(lora.target_modules, str) else list(lora.target_modules)
    model = get_peft_model(
        model,
        LoraConfig(
            r=lora.r,
            lora_alpha=lora.lora_alpha,
            lora_dropout=lora.lora_dropout,
            target_modules=targets,
            use_dora=lora.use_dora,
            task_type="CAUSAL_LM",
        ),
    )
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "lora_magnitude_vector" not in name:
            parameter.data = parameter.data.to(DTYPES[lora.dtype])
    return model


def _change_heads(job: Job, model: Any, base: Any, reference: Any) -> None:
    if job.stack == "transformers-4.48":
        base.forward = types.MethodType(old_stacks.forward_4_48, base)
    if job.stack == "transformers-4.45":
        base.forward = types.MethodType(old_stacks.forward_4_45, base)
    if not job.stack.startswith("trl"):
        return
    from trl.trainer.utils import add_fused_lm_head, disable_dropout_in_model

    if job.method == "dpo":  # DPOConfig.disable_dropout is on by default
        disable_dropout_in_model(model)
    if job.loss != "full" or job.method != "sft":
        add_fused_lm_head(base, outputs=FUSED_HEAD_OUTPUTS[job.method])
        if reference is not None:
            add_fused_lm_head(reference)


def _autocast_forward(model: Any, dtype: torch.dtype) -> None:
    """accelerate.Accelerator.prepare_model under mixed precision, one process."""
    from accelerate.utils import convert_outputs_to_fp32

    model.forward = types.MethodType(torch.autocast("cuda", dtype=dtype)(model.forward.__func__), model)
    model.forward = types.MethodType(convert_outputs_to_fp32(model.forward.__func__), model)
