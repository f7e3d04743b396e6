"""The optimizer as transformers' Trainer would create it. Worker process only."""

from __future__ import annotations

from typing import Any

import torch

from llamamath.planner.trace.model import Built

LEARNING_RATE = 1e-4


class PagedMemory:
    """bitsandbytes' paged state lives in managed memory (cudaMallocManaged), outside the caching allocator: counted apart."""

    def __init__(self) -> None:
        self.bytes = 0

    def install(self) -> None:
        """Replace bitsandbytes.functional's calls of the CUDA library by host-side fake tensors."""
        import bitsandbytes.functional as functional

        def get_paged(*shape: int, dtype: torch.dtype = torch.float32, device: Any = None) -> Any:
            tensor: Any = torch.empty(shape, dtype=dtype, device="cpu")
            self.bytes += tensor.numel() * tensor.element_size()
            tensor.is_paged, tensor.page_deviceid = True, 0
            return tensor

        functional.get_paged = get_paged
        functional.prefetch_tensor = lambda *args, **kwargs: None
        functional.fill = lambda tensor, value, **kwargs: None


def make_optimizer(name: str, built: Built, paged: PagedMemory) -> Any:
    """The optimizer of `TrainingArguments.optim`: decayed and undecayed groups as in Trainer.get_decay_parameter_names."""
    groups = _groups(built.model)
    if name == "adamw_torch_fused":
        return torch.optim.AdamW(groups, lr=LEARNING_RATE, fused=True)
    if name == "adamw_torch":  # torch takes the foreach implementation on CUDA
        return torch.optim.AdamW(groups, lr=LEARNING_RATE, foreach=True)
    if name == "sgd":
        return torch.optim.SGD(groups, lr=LEARNING_RATE, foreach=True)
    if name == "adafactor":
        from transformers.optimization import Adafactor

        return Adafactor(groups, lr=LEARNING_RATE, scale_parameter=False, relative_step=False)
    import bitsandbytes as bnb

    is_paged = name.startswith("paged")
    if is_paged:
        paged.install()
    bits = 8 if "8bit" in name else 32
    optimizer = bnb.optim.AdamW(groups, lr=LEARNING_RATE, optim_bits=bits, is_paged=is_paged)
    if bits == 8:  # Trainer: embeddings keep 32-bit state
        manager = bnb.optim.GlobalOptimManager.get_instance()
        for module in built.model.modules():
            if isinstance(module, torch.nn.Embedding):
                manager.register_module_override(module, "weight", {"optim_bits": 32})
    return optimizer


def _groups(model: Any) -> list[dict[str, Any]]:
    undecayed = set()
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and ("norm" in type(module).__name__.lower() or name == "bias"):
                undecayed.add(id(parameter))
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [{"params": [p for p in trainable if id(p) not in undecayed], "weight_decay": 0.0}]
    rest = [p for p in trainable if id(p) in undecayed]
    if rest:
        groups.append({"params": rest, "weight_decay": 0.0})
    return groups


def state_tensors(optimizer: Any) -> list[torch.Tensor]:
    """Every tensor of the optimizer's state."""
    return [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]


def create_state(optimizer: Any, updated: list[Any]) -> None:
    """What the run's first step leaves behind: one step with gradients of the shapes of the parameters that get one."""
    for parameter in updated:
        parameter.grad = torch.empty_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
