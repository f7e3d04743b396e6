"""bitsandbytes layers around fake tensors, byte for byte what its own loading leaves behind. Worker process only.

`Params4bit` and `Int8Params` cannot hold a fake tensor, so the layers are built on `meta` and get a plain parameter that carries the
quantisation state. Loading a weight shows its passing buffers: the weight in its load dtype and float32 absmax (functional.quantize_4bit),
or a float16 copy (nn.modules.Int8Params._quantize). Read in bitsandbytes 0.50.2.
"""

from __future__ import annotations

from typing import Any

import torch
from torch._subclasses import fake_tensor

BLOCK = 64
STATE_BLOCK = 256


def linear_4bit(source: Any, dtype: torch.dtype, load_dtype: torch.dtype, *, nested: bool) -> Any:
    """The Linear4bit that replaces the Linear `source` (which may be on meta)."""
    import bitsandbytes as bnb

    outer, inner = source.weight.shape
    with fake_tensor.unset_fake_temporarily(), torch.device("meta"):
        layer = bnb.nn.Linear4bit(1, 1, bias=False, compute_dtype=dtype, compress_statistics=nested, quant_type="nf4")
    layer.in_features, layer.out_features = inner, outer
    passing = torch.empty(outer, inner, dtype=load_dtype, device="cuda")
    packed = torch.empty(((outer * inner + 1) // 2, 1), dtype=torch.uint8, device="cuda")
    weight: Any = torch.nn.Parameter(packed, requires_grad=False)
    weight.quant_state = _state(outer, inner, dtype, nested)
    weight.bnb_quantized, weight.compress_statistics, weight.quant_type = True, nested, "nf4"
    weight.blocksize, weight.quant_storage, weight.module = BLOCK, torch.uint8, layer
    del passing, layer._parameters["weight"]
    layer._parameters["weight"] = weight
    layer.quant_state = weight.quant_state
    return layer


def _state(outer: int, inner: int, dtype: torch.dtype, nested: bool) -> Any:
    from bitsandbytes.functional import QuantState

    blocks = -(outer * inner // -BLOCK)
    absmax = torch.empty(blocks, dtype=torch.float32, device="cuda")
    code = torch.empty(16, dtype=torch.float32, device="cuda")
    common: dict[str, Any] = {"shape": torch.Size((outer, inner)), "code": code, "blocksize": BLOCK, "quant_type": "nf4", "dtype": dtype}
    if not nested:
        return QuantState(absmax=absmax, **common)
    second = QuantState(
        absmax=torch.empty(-(blocks // -STATE_BLOCK), dtype=torch.float32, device="cuda"),
        code=torch.empty(256, dtype=torch.float32, device="cuda"),
        blocksize=STATE_BLOCK,
        dtype=torch.float32,
    )
    offset = torch.empty((), dtype=torch.float32, device="cuda")
    return QuantState(absmax=torch.empty(blocks, dtype=torch.uint8, device="cuda"), offset=offset, state2=second, **common)


def linear_8bit(source: Any, load_dtype: torch.dtype) -> Any:
    """The Linear8bitLt that replaces the Linear `source`."""
    import bitsandbytes as bnb

    outer, inner = source.weight.shape
    with fake_tensor.unset_fake_temporarily(), torch.device("meta"):
        layer = bnb.nn.Linear8bitLt(1, 1, bias=False, has_fp16_weights=False, threshold=6.0)
    layer.in_features, layer.out_features = inner, outer
    passing = torch.empty(outer, inner, dtype=load_dtype, device="cuda")
    half = passing if load_dtype == torch.float16 else torch.empty(outer, inner, dtype=torch.float16, device="cuda")
    weight: Any = torch.nn.Parameter(torch.empty((outer, inner), dtype=torch.int8, device="cuda"), requires_grad=False)
    weight.CB, weight.SCB, weight.has_fp16_weights = weight.data, torch.empty(outer, dtype=torch.float32, device="cuda"), False
    del passing, half, layer._parameters["weight"]
    layer._parameters["weight"] = weight
    layer.state.CB, layer.state.SCB = weight.data, weight.SCB
    layer.init_8bit_state = lambda: None
    return layer


def unconverted_modules(model: Any) -> list[str]:
    """transformers' own list of modules that stay unquantised (lm_head and what is tied to it)."""
    from transformers.quantizers.base import get_keys_to_not_convert

    return list(get_keys_to_not_convert(model))


def is_converted(name: str, kept: list[str]) -> bool:
    """Whether the linear of that name is quantised (transformers quantizers_utils.should_convert_module)."""
    return not any(name == skip or name.endswith(f".{skip}") or name.startswith(f"{skip}.") for skip in kept)


def teach_peft_about_fake_weights() -> None:
    """DoRA asks for the dequantised weight by the parameter's class; ours is a plain Parameter with a quant_state."""
    import bitsandbytes.functional as functional
    from peft.tuners.lora import dora, layer

    original = dora.dequantize_module_weight

    def dequantize(module: Any) -> Any:
        weight = module.weight
        if hasattr(weight, "quant_state"):
            return functional.dequantize_4bit(weight.data, weight.quant_state)
        if hasattr(weight, "SCB"):
            return functional.int8_vectorwise_dequant(weight.data, weight.SCB)
        return original(module)

    dora.dequantize_module_weight = dequantize
    layer.dequantize_module_weight = dequantize
