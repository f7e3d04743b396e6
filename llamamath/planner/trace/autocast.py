"""The CUDA autocast policy, in Python. Worker process only.

Tables from aten/src/ATen/autocast_mode.h (torch 2.13): AT_FORALL_LOWER_PRECISION_FP, AT_FORALL_FP32, AT_FORALL_FP32_SET_OPT_DTYPE, as far
as the supported models and losses reach.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch.utils._pytree import tree_map_only

_PRODUCTS = (
    "matmul",
    "mm",
    "bmm",
    "addmm",
    "baddbmm",
    "addmv",
    "mv",
    "addbmm",
    "chain_matmul",
    "einsum",
    "prelu",
    "conv1d",
    "conv2d",
    "conv3d",
)
LOWER_PRECISION = frozenset(
    {getattr(torch, name) for name in _PRODUCTS}
    | {getattr(torch.Tensor, name) for name in ("matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "addmm", "baddbmm", "mv")}
    | {F.linear, F.conv1d, F.conv2d, F.conv3d, F.scaled_dot_product_attention}
)
_POWERS = ("pow", "rsqrt", "exp", "expm1", "log", "log1p", "log10", "log2", "reciprocal", "logsumexp")
_BOTH = (*_POWERS, "cosh", "sinh", "tan", "acos", "asin", "norm", "renorm", "cosine_similarity")
FLOAT32 = frozenset(
    {getattr(torch, name) for name in _BOTH if hasattr(torch, name)}
    | {getattr(torch.Tensor, name) for name in _BOTH if hasattr(torch.Tensor, name)}
    | {torch.Tensor.__pow__, F.cross_entropy, F.nll_loss, F.layer_norm, F.group_norm, F.mse_loss, F.cosine_similarity, F.softplus}
)
FLOAT32_RESULT = frozenset(
    {getattr(torch, name) for name in ["sum", "prod", "cumsum", "cumprod", "softmax", "log_softmax"]}
    | {getattr(torch.Tensor, name) for name in ["sum", "prod", "cumsum", "cumprod", "softmax", "log_softmax"]}
    | {F.softmax, F.log_softmax}
)
_HALF = (torch.bfloat16, torch.float16)


class Autocast:
    """Casts arguments as autocast would, with its cache of cast weights."""

    def __init__(self) -> None:
        self.cache: dict[int, torch.Tensor] = {}
        """id of a float32 leaf that requires a gradient -> its copy; cleared when the outermost autocast exits."""

    def arguments(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments `func` would really get."""
        if not torch.is_autocast_enabled("cuda"):
            return args, kwargs
        if func in LOWER_PRECISION:
            dtype = torch.get_autocast_dtype("cuda")
            return tree_map_only(torch.Tensor, lambda tensor: self.cast_weight(tensor, dtype), (args, kwargs))  # type: ignore[no-any-return]
        if func in FLOAT32_RESULT:
            if args and isinstance(args[0], torch.Tensor) and args[0].is_floating_point() and kwargs.get("dtype") is None:
                return args, {**kwargs, "dtype": torch.float32}
        elif func in FLOAT32 and "dtype" not in kwargs:
            return tree_map_only(torch.Tensor, lambda tensor: tensor.float() if tensor.dtype in _HALF else tensor, (args, kwargs))  # type: ignore[no-any-return]
        return args, kwargs

    def cast_weight(self, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """autocast_mode.cpp cached_cast: only float32 leaves that require a gradient are cached."""
        if not tensor.is_floating_point() or tensor.dtype in (dtype, torch.float64):
            return tensor
        if tensor.is_leaf and tensor.requires_grad and tensor.dtype == torch.float32 and torch.is_autocast_cache_enabled():
            if id(tensor) not in self.cache:
                self.cache[id(tensor)] = tensor.to(dtype)
            return self.cache[id(tensor)]
        return tensor.to(dtype)
