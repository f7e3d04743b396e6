"""Linear layers: plain, 4-bit and 8-bit bases, and the LoRA or DoRA branch beside them.

Sources: torch's MmBackward; bitsandbytes 0.50.2 `autograd/_functions.py` (MatMul4Bit, MatMul8bitLt) and `backends/cuda/ops.py`;
peft 0.21.2 `tuners/lora/bnb.py`, `tuners/lora/layer.py` and `tuners/lora/dora.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

from llamamath.planner.memory import ops
from llamamath.planner.memory.autograd import Graph, Value
from llamamath.planner.memory.polynomial import Size
from llamamath.planner.memory.settings import Settings

NF4_BLOCK = 64
FUSED_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj")
"""Linears that fms-acceleration's LoRA functions replace (its MLP function needs all three of the MLP adapted and is not described)."""


class Projections:
    """Applies linears under one set of settings."""

    def __init__(self, graph: Graph, settings: Settings) -> None:
        self.graph = graph
        self.settings = settings
        self.trainable_bytes = 0
        """Bytes of all trainable weights met so far (each visit counts)."""

    def weight(self, numel: int, width: int | None = None) -> Value:
        """A base weight: counted among the weights already; trained only in full fine-tuning."""
        s = self.settings
        if not s.train_base:
            return Value(None, numel, width or s.load_width)
        self.trainable_bytes += numel * (width or s.load_width)
        return Value(None, numel, width or s.load_width, self.graph.parameter(s.accumulating))

    def __call__(self, module: str, x: Value, rows: Size, in_features: int, out_features: int, *, tower: str = "text") -> Value:
        """The output of linear `module` for `rows` vectors `x` of `in_features`; with its adapter if it has one."""
        s = self.settings
        quantized = s.quantized
        if not s.adapts(module, tower):
            return self.base(x, rows, in_features, out_features)
        if s.fused and quantized and module in FUSED_MODULES:
            return self._fused_lora(x, rows, in_features, out_features)
        return self._with_adapter(x, self.base(x, rows, in_features, out_features), rows, in_features, out_features, quantized)

    def base(self, x: Value, rows: Size, in_features: int, out_features: int) -> Value:
        """The linear without its adapter, quantised if the model is."""
        if not self.settings.quantized:
            return self.linear(x, rows * out_features, self.weight(in_features * out_features))
        if self.settings.quantization == "int8":
            return self._linear8bit(x, rows, in_features, out_features)
        return self.linear4bit(x, rows, in_features, out_features)

    def _with_adapter(self, x: Value, result: Value, rows: Size, in_features: int, out_features: int, quantized: bool) -> Value:
        g, s = self.graph, self.settings
        width = result.width
        if quantized:
            if s.layers == "transformers":  # PEFT's quantised layers; others add to the product itself
                result = ops.clone(g, result)
            if not s.autocast:
                x = ops.cast(g, x, s.adapter_width)
        else:
            x = ops.cast(g, x, s.adapter_width)
        if s.dora:
            total = self._dora(x, result, rows, in_features, out_features, quantized)
            return total if quantized and s.autocast else ops.cast(g, total, width)
        down = self.linear(ops.dropout(g, x) if s.dropout else x, rows * s.rank, self.adapter(in_features * s.rank))
        up = self.linear(down, rows * out_features, self.adapter(out_features * s.rank))
        del down
        branch = ops.scale(g, up)
        del up
        if quantized and not s.autocast:
            branch = ops.cast(g, branch, width)
        total = ops.add_in_place(g, result, branch) if s.in_place_adapters else ops.add(g, result, branch)
        del result, branch
        return ops.cast(g, total, width)

    def adapter(self, numel: int) -> Value:
        """A trainable matrix of an adapter."""
        s = self.settings
        self.trainable_bytes += numel * s.adapter_width
        return Value(None, numel, s.adapter_width, self.graph.parameter(s.accumulating))

    def linear(self, x: Value, out_numel: Size, weight: Value) -> Value:
        """`F.linear`: under autocast both operands become 2-byte; saves what the other operand's gradient needs."""
        g = self.graph
        if self.settings.autocast:
            x = ops.cast(g, x, 2)
            if weight.width == 4 and weight.node is not None and not g.grad_enabled:
                weight = Value(None, weight.numel, 2, weight.node)  # autocast's weight cache, counted for the whole forward
            weight = ops.cast(g, weight, 2)
        width = max(x.width, weight.width)
        needs_x, needs_weight = x.node is not None, weight.node is not None
        if g.needs_grad(x, weight):
            g.save(needs_x + needs_weight)
        out = g.allocate(out_numel, width)
        if g.needs_grad(x, weight):
            saved = [weight if needs_x else None, x if needs_weight else None]
            x_numel, weight_numel = x.numel, weight.numel

            def backward(grad: Value) -> Sequence[Value | None]:
                for_x = g.allocate(x_numel, width) if needs_x else None
                for_weight = g.allocate(weight_numel, width) if needs_weight else None
                for gradient in (for_x, for_weight):
                    if gradient is not None:
                        gradient.view = True
                saved.clear()
                return (for_x, for_weight)

            g.attach(out, (x, weight), backward)
        return out

    def linear4bit(self, x: Value, rows: Size, in_features: int, out_features: int) -> Value:
        """MatMul4Bit: dequantises the whole weight forward (above 1,536 rows) and always backward.

        It saves no activation; before bitsandbytes 0.43 it kept its input all the same, for a gradient that does not exist.
        """
        g, s = self.graph, self.settings
        back_to = x.width
        x = ops.cast(g, x, s.compute_width)
        numel = in_features * out_features
        nested = s.quantization == "nf4-dq"
        temporaries = []
        if not s.small_batch:
            if nested:
                temporaries += [ops.temporary(g, numel // NF4_BLOCK, 4), ops.temporary(g, numel // NF4_BLOCK, 4)]
            temporaries.append(self.dequantized(numel))
        out = g.allocate(rows * out_features, s.compute_width)
        temporaries.clear()
        if s.keeps_inputs and g.kept is not None:
            g.kept.append(x)
        if g.needs_grad(x):
            x_numel = x.numel
            kept = [x] if s.keeps_inputs else []

            def backward(grad: Value) -> Sequence[Value | None]:
                held = [ops.temporary(g, numel // NF4_BLOCK, 4)] if nested else []
                held.append(self.dequantized(numel))
                if nested:
                    held.pop(0)
                result = g.allocate(x_numel, s.compute_width)
                held.clear()
                kept.clear()
                return (result,)

            g.attach(out, (x,), backward)
        return ops.cast(g, out, back_to)

    def dequantized(self, numel: int) -> Value:
        """A 4-bit weight in the compute dtype; where it was quantised from float16, both exist for a moment."""
        g, s = self.graph, self.settings
        half = ops.temporary(g, numel, 2) if s.through_float16 else None
        weight = ops.temporary(g, numel, s.compute_width)
        del half
        return weight

    def _linear8bit(self, x: Value, rows: Size, in_features: int, out_features: int) -> Value:
        """MatMul8bitLt with threshold 6: an int8 copy and outlier scan of the input; the product in int32 and fp16. Keeps its input."""
        g = self.graph
        numel = in_features * out_features
        quantised = ops.temporary(g, x.numel, 1)
        scan = [ops.temporary(g, x.numel, 2), ops.temporary(g, x.numel, 2), ops.temporary(g, x.numel, 1)]  # fp16 copy, |x|, |x| >= 6
        scan.clear()
        product = [ops.temporary(g, rows * out_features, 4), ops.temporary(g, rows * out_features, 2)]  # int32, then fp16
        out = g.allocate(rows * out_features, x.width)
        product.clear()
        del quantised
        if g.kept is not None:
            g.kept.append(x)
        if g.needs_grad(x):
            kept = [x]
            x_numel, width = x.numel, x.width

            def backward(grad: Value) -> Sequence[Value | None]:
                weight = ops.temporary(g, numel, width)
                result = g.allocate(x_numel, width)
                del weight
                kept.clear()
                return (result,)

            g.attach(out, (x,), backward)
        return out

    def _dora(self, x: Value, result: Value, rows: Size, in_features: int, out_features: int, quantized: bool) -> Value:
        """DoRA: result + (m/|W+BA| - 1) * base + m/|W+BA| * B(A(x)) * scaling, with fp32 magnitudes m, so everything becomes fp32.

        The norm is taken anew in each forward: an identity pushed through the adapter gives BA, and W, BA, their casts, the scaled BA and
        the sum are alive together. With dropout the base is applied a second time, to the dropped input.
        """
        g, s = self.graph, self.settings
        numel = in_features * out_features
        weights = [ops.temporary(g, in_features * in_features, s.adapter_width), ops.temporary(g, numel, s.adapter_width)]
        if x.width != s.adapter_width:
            weights.append(ops.temporary(g, numel, x.width))
        if quantized:
            weights.append(ops.temporary(g, numel, s.compute_width))
        if x.width != (s.compute_width if quantized else s.load_width):
            weights.append(ops.temporary(g, numel, x.width))
        weights += [ops.temporary(g, numel, x.width), ops.temporary(g, numel, x.width)]
        weights.clear()
        base = result
        if s.dropout:
            x = ops.dropout(g, x)
            base = self.linear(x, rows * out_features, Value(None, numel, x.width))
        magnitude = Value(None, out_features, 4, self.adapter(out_features).node)
        scaled_base = ops.mul_vector(g, base, magnitude)
        down = self.linear(x, rows * s.rank, self.adapter(in_features * s.rank))
        up = self.linear(down, rows * out_features, self.adapter(out_features * s.rank))
        del down
        branch = ops.mul_vector(g, up, magnitude)
        del up
        branch = ops.scale(g, branch)
        extra = ops.add(g, scaled_base, branch)
        del scaled_base, branch
        return ops.add(g, result, extra)

    def fused_input(self, x: Value, modules: tuple[str, ...]) -> Value:
        """The input as fms-acceleration's LoRA functions see it: 2-byte, and saved by them even where dropout replaces it."""
        s = self.settings
        if not (s.fused and s.quantized and any(s.adapts(module) for module in modules)):
            return x
        return ops.cast(self.graph, x, 2)

    def _fused_lora(self, x: Value, rows: Size, in_features: int, out_features: int) -> Value:
        """fms-acceleration's LoRA function (its `unsloth_lora/bnb/fast_lora.py`): saves its input and, with dropout, the dropped copy.

        No masks, no adapter outputs; the product with the dequantised weight and the branch are added in place.
        """
        g, s = self.graph, self.settings
        numel = in_features * out_features
        weight = ops.temporary(g, numel, 2)
        out = g.allocate(rows * out_features, 2)
        del weight
        dropped = g.allocate(x.numel, 2) if s.dropout else x
        branch = [g.allocate(rows * s.rank, 2), g.allocate(rows * out_features, 2)]
        branch.clear()
        adapters = (self.adapter(in_features * s.rank), self.adapter(out_features * s.rank))
        if g.needs_grad(x, *adapters):
            g.save(2)
            saved = [x, dropped]
            x_numel, rank, width = x.numel, s.rank, s.adapter_width

            def backward(grad: Value) -> Sequence[Value | None]:
                first = g.allocate(in_features * rank, width)
                second = g.allocate(out_features * rank, width)
                held = ops.temporary(g, numel, 2)
                result = g.allocate(x_numel, 2)
                del held
                mask = [g.allocate(x_numel, 1), g.allocate(x_numel, 2), g.allocate(x_numel, 2)]
                mask.clear()
                saved.clear()
                return (result, first, second)

            g.attach(out, (x, *adapters), backward)
        return out
