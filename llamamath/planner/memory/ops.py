"""Element-wise operations, norms and rotary embeddings: what each allocates forward, saves, and allocates backward.

Every function imitates the torch operation of the same name (derivatives.yaml and FunctionsManual.cpp of torch 2.13).
Shapes are written as element counts; `x` and friends are Values. A second operand that needs no gradient is not saved.
"""

from __future__ import annotations

from collections.abc import Sequence

from llamamath.planner.memory.autograd import Graph, Parameter, Value
from llamamath.planner.memory.ledger import TEMPORARY
from llamamath.planner.memory.polynomial import Size

FP32 = 4


def keep_for(g: Graph, out: Value, x: Value, *kept: Value) -> Value:
    """Attach `out = f(x)` whose backward allocates x's gradient and then lets go of the `kept` tensors."""
    saved = list(kept)
    numel, width = x.numel, x.width

    def backward(grad: Value) -> Sequence[Value | None]:
        result = g.allocate(numel, width)
        saved.clear()
        return (result,)

    return g.attach(out, (x,), backward)


def cast(g: Graph, x: Value, width: int) -> Value:
    """`x.to(dtype)`: nothing when the dtype is the same, else a copy; backward copies the gradient back."""
    if x.width == width:
        return x
    out = g.allocate(x.numel, width)
    return keep_for(g, out, x) if g.needs_grad(x) else out


def scale(g: Graph, x: Value) -> Value:
    """`x * scalar`, and `dropout` in evaluation; saves nothing."""
    out = g.allocate(x.numel, x.width)
    return keep_for(g, out, x) if g.needs_grad(x) else out


def clone(g: Graph, x: Value) -> Value:
    """`x.clone()`: a copy whose backward passes the gradient through."""
    out = g.allocate(x.numel, x.width)
    if g.needs_grad(x):
        g.attach(out, (x,), lambda grad: (grad,))
    return out


def view(g: Graph, x: Value) -> Value:
    """A view of the whole of `x`: shares its memory."""
    out = Value(x.buffer, x.numel, x.width)
    if g.needs_grad(x):
        g.attach(out, (x,), lambda grad: (grad,))
    return out


def narrow(g: Graph, x: Value, numel: Size) -> Value:
    """A slice of `x` as a view; backward writes the gradient into zeros of the whole."""
    out = Value(x.buffer, numel, x.width)
    return keep_for(g, out, x) if g.needs_grad(x) else out


def add(g: Graph, a: Value, b: Value) -> Value:
    """`a + b` of equal shapes with type promotion; backward hands the same gradient to both, cast where needed."""
    out = g.allocate(a.numel, max(a.width, b.width))
    if g.needs_grad(a, b):
        widths, numel = (a.width, b.width), a.numel
        needs = (a.node is not None, b.node is not None)

        def backward(grad: Value) -> Sequence[Value | None]:
            return tuple(
                (grad if width == grad.width else g.allocate(numel, width)) if need else None
                for width, need in zip(widths, needs, strict=True)
            )

        g.attach(out, (a, b), backward)
    return out


def add_in_place(g: Graph, a: Value, b: Value) -> Value:
    """`a += b`: no new tensor; the gradient goes to both."""
    out = Value(a.buffer, a.numel, a.width)
    if g.needs_grad(a, b):
        needs = (a.node is not None, b.node is not None)
        g.attach(out, (a, b), lambda grad: tuple(grad if need else None for need in needs))
    return out


def mul(g: Graph, a: Value, b: Value) -> Value:
    """`a * b` of equal shapes; each operand is saved for the other's gradient."""
    needs_a, needs_b = a.node is not None, b.node is not None
    if g.needs_grad(a, b):
        g.save(needs_a + needs_b)  # inputs are saved before the kernel runs
    out = g.allocate(a.numel, max(a.width, b.width))
    if g.needs_grad(a, b):
        saved = [b if needs_a else None, a if needs_b else None]
        numel, width_a, width_b = a.numel, a.width, b.width

        def backward(grad: Value) -> Sequence[Value | None]:
            first = g.allocate(numel, width_a) if needs_a else None
            second = g.allocate(numel, width_b) if needs_b else None
            saved.clear()
            return (first, second)

        g.attach(out, (a, b), backward)
    return out


def mul_constant(g: Graph, x: Value, width: int | None = None) -> Value:
    """`x * c` with a small tensor `c` that needs no gradient (cos, sin, a gate): saves only `c`; the result may be wider than x."""
    out = g.allocate(x.numel, width or x.width)
    if g.needs_grad(x):
        g.save()
        numel, back, wide = x.numel, x.width, out.width

        def backward(grad: Value) -> Sequence[Value | None]:
            product = g.allocate(numel, wide)
            return (product if wide == back else g.allocate(numel, back),)

        g.attach(out, (x,), backward)
    return out


def mul_vector(g: Graph, x: Value, vector: Value) -> Value:
    """`x * v` with a trained vector `v` broadcast over the rows: saves x for v's gradient; the product takes the wider dtype."""
    wide = max(x.width, vector.width)
    if g.needs_grad(x, vector):
        g.save(2)
    out = g.allocate(x.numel, wide)
    if g.needs_grad(x, vector):
        needs_x = x.node is not None
        saved = [x]
        numel, width = x.numel, x.width
        vector_numel, vector_width = vector.numel, vector.width

        def backward(grad: Value) -> Sequence[Value | None]:
            for_x = g.allocate(numel, wide) if needs_x else None
            if for_x is not None and width != wide:
                for_x = g.allocate(numel, width)
            product = g.allocate(numel, wide)
            for_vector = g.allocate(vector_numel, vector_width)
            del product
            saved.clear()
            return (for_x, for_vector)

        g.attach(out, (x, vector), backward)
    return out


def activation(g: Graph, x: Value) -> Value:
    """silu, gelu or tanh-gelu: saves its input; backward allocates its gradient."""
    out = g.allocate(x.numel, x.width)
    if g.needs_grad(x):
        g.save()
        keep_for(g, out, x, x)
    return out


def saves_output(g: Graph, x: Value) -> Value:
    """tanh and the like: saves its output instead of its input."""
    out = g.allocate(x.numel, x.width)
    if g.needs_grad(x):
        g.save()
        keep_for(g, out, x, Value(out.buffer, out.numel, out.width))
    return out


def dropout(g: Graph, x: Value) -> Value:
    """Training dropout with p > 0 on CUDA: a 1-byte mask is kept, the output is new."""
    out = g.allocate(x.numel, x.width)
    mask = g.allocate(x.numel, 1)
    if g.needs_grad(x):
        g.save()
        keep_for(g, out, x, mask)
    return out


def rms_norm(g: Graph, x: Value, rows: Size, weight: Value, *, gemma: bool = False, fused: bool = False) -> Value:
    """RMSNorm as transformers writes it: cast to fp32, square, mean, rsqrt, scale, cast back, times the weight.

    rows: number of normalised vectors. `gemma`: weight applied in fp32 before the cast back. `fused`: one kernel that saves the input
    and one fp32 statistic per row. The weight's own gradient is counted through `weight.node`.
    """
    if fused:
        return _fused_norm(g, x, rows, weight)
    width = x.width
    h = cast(g, x, FP32)
    normalised = _normalise(g, h, rows)
    del h
    if gemma:
        scaled = _times_weight(g, normalised, weight, FP32)
        del normalised
        return cast(g, scaled, width)
    narrowed = cast(g, normalised, width)
    del normalised
    return _times_weight(g, narrowed, weight, max(width, weight.width))


def _normalise(g: Graph, h: Value, rows: Size) -> Value:
    """`h * rsqrt(h.pow(2).mean(-1) + eps)`: saves h (for pow and for mul) and the fp32 rsqrt; the square is temporary."""
    statistic = _inverse_rms(g, h, rows)
    numel = h.numel
    out = g.allocate(numel, FP32)
    if g.needs_grad(h):
        g.save(2)
        saved = [h, statistic]

        def backward(grad: Value) -> Sequence[Value | None]:
            direct = g.allocate(numel, FP32)  # grad * rsqrt
            product = g.allocate(numel, FP32)  # grad * h, then summed over the row
            del product
            saved.clear()
            return (direct, g.allocate(rows, FP32))

        g.attach(out, (h, statistic), backward)
    return out


def _inverse_rms(g: Graph, h: Value, rows: Size) -> Value:
    """`rsqrt(h.pow(2).mean(-1) + eps)`; backward: the mean's gradient expanded, then `grad * (2 * h.pow(1))`."""
    square = g.allocate(h.numel, FP32)
    del square
    out = g.allocate(rows, FP32)
    if g.needs_grad(h):
        g.save(2)
        saved = [h]
        numel = h.numel

        def backward(grad: Value) -> Sequence[Value | None]:
            spread = g.allocate(numel, FP32)
            power = [g.allocate(numel, FP32), g.allocate(numel, FP32)]
            result = g.allocate(numel, FP32)
            del spread
            power.clear()
            saved.clear()
            return (result,)

        g.attach(out, (h,), backward)
    return out


def _times_weight(g: Graph, x: Value, weight: Value, width: int) -> Value:
    out = g.allocate(x.numel, width)
    if g.needs_grad(x, weight):
        trained = isinstance(weight.node, Parameter)
        g.save(1 + trained)
        saved = [x] if trained else []
        numel, back = x.numel, x.width
        weight_numel, weight_width = weight.numel, weight.width

        def backward(grad: Value) -> Sequence[Value | None]:
            result = g.allocate(numel, width)
            if width != back:
                result = g.allocate(numel, back)
            for_weight = None
            if trained:
                product = g.allocate(numel, width)
                for_weight = g.allocate(weight_numel, weight_width)
                del product
            saved.clear()
            return (result, for_weight)

        g.attach(out, (x, weight), backward)
    return out


def _fused_norm(g: Graph, x: Value, rows: Size, weight: Value) -> Value:
    """fms-acceleration's triton RMSNorm: saves its input and an fp32 statistic; backward overwrites the incoming gradient."""
    if g.needs_grad(x, weight):
        g.save(3)
    out = g.allocate(x.numel, x.width)
    statistic = g.allocate(rows, FP32)
    if g.needs_grad(x, weight):
        saved = [x, statistic]

        def backward(grad: Value) -> Sequence[Value | None]:
            saved.clear()
            return (grad,)

        g.attach(out, (x,), backward)
    return out


def layer_norm(g: Graph, x: Value, rows: Size, *, autocast: bool) -> Value:
    """`nn.LayerNorm`: saves its input and two fp32 statistics per row. Autocast runs it in fp32, and its output stays fp32."""
    x = cast(g, x, FP32) if autocast else x
    if g.needs_grad(x):
        g.save(3)
    out = g.allocate(x.numel, x.width)
    statistics = g.allocate(2 * rows, FP32)
    return keep_for(g, out, x, x, statistics) if g.needs_grad(x) else out


def split(g: Graph, x: Value, *numels: Size) -> list[Value]:
    """`x.split(...)`: views; one backward for all of them concatenates their gradients."""
    parts = [Value(x.buffer, numel, x.width) for numel in numels]
    if g.needs_grad(x):
        whole, width, count = x.numel, x.width, len(numels)
        received: list[Value] = []

        def backward(grad: Value) -> Sequence[Value | None]:
            received.append(grad)
            if len(received) < count:
                return (None,)
            joined = g.allocate(whole, width)
            received.clear()
            return (joined,)

        for part in parts:
            g.attach(part, (x,), backward)
    return parts


def rotate(g: Graph, x: Value, *, fused: bool = False, table_width: int | None = None) -> Value:
    """`(x * cos) + (rotate_half(x) * sin)`; saves only cos and sin, which all layers share. `table_width`: theirs, where it is wider."""
    if fused:
        out = g.allocate(x.numel, x.width)
        if g.needs_grad(x):
            g.save()
            g.attach(out, (x,), lambda grad: (grad,))
        return out
    first = mul_constant(g, x, table_width)
    halves = _rotate_half(g, x)
    second = mul_constant(g, halves, table_width)
    del halves
    return add(g, first, second)


def _rotate_half(g: Graph, x: Value) -> Value:
    """`cat((-x2, x1))`: the negated half is temporary; backward pads both halves' gradients to the whole."""
    half = x.numel // 2 if isinstance(x.numel, int) else x.numel
    negated = g.allocate(half, x.width)
    out = g.allocate(x.numel, x.width)
    del negated
    if g.needs_grad(x):
        numel, width = x.numel, x.width

        def backward(grad: Value) -> Sequence[Value | None]:
            first = g.allocate(numel, width)  # slice_backward of x1
            flipped = g.allocate(half, width)
            second = g.allocate(numel, width)  # slice_backward of x2
            del flipped, second
            return (first,)

        g.attach(out, (x,), backward)
    return out


def temporary(g: Graph, numel: Size, width: int) -> Value:
    """A workspace, counted as temporary."""
    return g.allocate(numel, width, TEMPORARY)
