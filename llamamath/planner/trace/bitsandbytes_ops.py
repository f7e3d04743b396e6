"""bitsandbytes' operations as its CUDA backend does them, buffer by buffer. Worker process only.

Read in bitsandbytes 0.50.2: backends/cuda/ops.py, backends/default/ops.py. Their fake implementations only show the result.
"""

from __future__ import annotations

import ast
import functools
import os
from typing import Any

import torch

from llamamath.planner.trace.request import OLD_STACKS, TraceRequest
from llamamath.planner.trace.tracker import Emulation, StorageTracker

aten = torch.ops.aten
FUSED_ROWS = 1536
"""Above this many rows a 4-bit product always dequantises its weight (`_gemm_4bit_custom_max_m`)."""
OUTLIER_THRESHOLD = 6.0


def emulations(tracker: StorageTracker, request: TraceRequest) -> dict[str, Emulation]:
    """Operation name -> what the CUDA backend allocates for it."""
    fused = _fused_kernel_rule()
    always_dequantise = request.cpu_kernels or request.job.stack in OLD_STACKS  # the fused kernel for many rows came with 0.46

    def gemm_4bit(
        a: Any, b: Any, shape: Any, absmax: Any, blocksize: int, quant_type: str, bias: Any = None,
        absmax_8bit: Any = None, absmax_code: Any = None, absmax_offset: Any = None, *_: Any,
    ) -> Any:  # fmt: skip
        """The fused kernel, or: absmax dequantised, the weight dequantised, F.linear."""
        inner = a.shape[-1]
        rows, outer = a.numel() // inner, shape[0]
        if not (rows > FUSED_ROWS or inner % blocksize or always_dequantise) and fused(request, a.dtype, rows, outer, inner):
            a = a.contiguous()
            return torch.empty((*a.shape[:-1], outer), dtype=a.dtype, device=a.device)
        if absmax_8bit is not None:
            absmaxes = dequantised_absmax(absmax_8bit, absmax_offset)  # noqa: F841 - alive beside the weight
        weight = dequantised_weight(shape, a)
        return aten.linear(a, weight, bias)

    def vectorwise_quant(a: Any, threshold: float = 0.0) -> Any:
        statistics = torch.empty(a.numel() // a.shape[-1], dtype=torch.float32, device=a.device)
        rows = torch.empty(a.shape, dtype=torch.int8, device=a.device)
        columns = None
        if threshold > 0.0:
            outliers = a.abs() >= threshold
            outliers.any()
            outliers.any(dim=0)
            del outliers
            columns = torch.empty(0, dtype=torch.int64, device=a.device)
        return rows, statistics, columns

    def scaled_mm(a: Any, b: Any, row_stats: Any, col_stats: Any, bias: Any = None, dtype: Any = None) -> Any:
        product = integer_product(a, b)
        out = torch.empty_like(product, dtype=torch.float16)
        if bias is not None and bias.dtype != torch.float16:
            out.add_(bias)
        return out.to(dtype or torch.float16)

    def mixed_scaled_mm(a: Any, ca: Any, cb: Any, sca: Any, scb: Any, outlier_cols: Any = None, bias: Any = None) -> Any:
        return scaled_mm(ca, cb, sca, scb, bias=bias, dtype=a.dtype), torch.empty(0, device=a.device, dtype=a.dtype)

    table: dict[str, Emulation] = {"bitsandbytes::gemm_4bit": gemm_4bit}
    if not request.cpu_kernels:
        table |= {
            "bitsandbytes::int8_vectorwise_quant": vectorwise_quant,
            "bitsandbytes::int8_scaled_mm": scaled_mm,
            "bitsandbytes::int8_mixed_scaled_mm": mixed_scaled_mm,
        }
    return table


def dequantised_absmax(quantised: Any, offset: Any) -> Any:
    """The nested absmax dequantised, and with its offset: `_dequant_linear_fallback` names both until it returns."""
    plain = torch.empty_like(quantised, dtype=torch.float32)
    return plain, plain + offset


def dequantised_weight(shape: Any, like: Any) -> Any:
    """The weight in the compute dtype, for one product."""
    return torch.empty(tuple(shape), dtype=like.dtype, device=like.device)


def integer_product(a: Any, b: Any) -> Any:
    """int32 [rows, out] of an 8-bit product, before it is scaled."""
    return torch.empty((*a.shape[:-1], b.shape[0]), dtype=torch.int32, device=a.device)


def _fused_kernel_rule() -> Any:
    """bitsandbytes' own choice between its fused 4-bit kernel and dequantising, lifted out of a module that loads the CUDA library."""
    import bitsandbytes

    path = os.path.join(os.path.dirname(bitsandbytes.__file__), "backends", "cuda", "ops.py")
    with open(path, encoding="utf-8") as file:
        tree = ast.parse(file.read())
    wanted = [node for node in tree.body if _is_wanted(node)]
    scope: dict[str, Any] = {"torch": torch, "functools": functools}
    exec(compile(ast.Module(wanted, []), path, "exec"), scope)
    rule = scope["_gemm_4bit_use_custom_cuda"]
    rule = getattr(rule, "__wrapped__", rule)

    def choose(request: TraceRequest, dtype: torch.dtype, rows: int, outer: int, inner: int) -> bool:
        rule.__globals__["_gpu_dispatch_props"] = lambda index: (request.multiprocessors, *request.capability)
        return bool(rule(0, dtype, rows, outer, inner))

    return choose


def _is_wanted(node: ast.stmt) -> bool:
    if isinstance(node, ast.FunctionDef):
        return node.name == "_gemm_4bit_use_custom_cuda"
    return isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "_GEMM_4BIT_CUSTOM_FLOOR_M"
