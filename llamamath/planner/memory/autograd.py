"""A symbolic autograd: values with sizes instead of numbers, saved tensors, and a backward that frees them in torch's order.

It follows the rules of torch's engine that decide memory (torch 2.13, `torch/csrc/autograd/engine.cpp`, `input_buffer.cpp`): nodes run
in descending creation order, a node's saved tensors go when it has run, a second gradient for the same input is added in place unless
the first is a view (as a linear's gradient over a 3-d input is; seen with allocation events on a CPU), and a parameter's first gradient
is kept, not copied.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence

from llamamath.planner.memory.ledger import ACTIVATION, GRADIENT, Buffer, Ledger
from llamamath.planner.memory.polynomial import Size

Backward = Callable[["Value"], Sequence["Value | None"]]


class Node:
    """One operation of the graph. `backward` maps the output's gradient to one gradient (or None) per input."""

    __slots__ = ("backward", "gradient", "inputs", "order")

    def __init__(self, order: int, inputs: tuple[Node | None, ...], backward: Backward | None) -> None:
        self.order = order
        self.inputs = inputs
        self.backward = backward
        self.gradient: Value | None = None


class Value:
    """A tensor: `numel` elements (a linear form) of `width` bytes in a `buffer`; `node` is its grad_fn.

    Views share their base's buffer. `buffer` is None for memory counted elsewhere (weights) and for values after an early stop.
    """

    __slots__ = ("buffer", "node", "numel", "view", "width")

    def __init__(self, buffer: Buffer | None, numel: Size, width: int, node: Node | None = None) -> None:
        self.view = False
        """True for a gradient that is a view, which the engine does not add to in place."""
        self.buffer = buffer
        self.numel = numel
        self.width = width
        self.node = node


class Parameter(Node):
    """A trainable weight: where gradients accumulate. `kept` holds them; None when earlier micro-batches left one to add to."""

    __slots__ = ("first", "has_gradient", "kept")

    def __init__(self, kept: list[Buffer] | None) -> None:
        super().__init__(1 << 60, (), None)
        self.kept = kept
        self.first: Value | None = None
        self.has_gradient = kept is None

    def accumulate(self, gradient: Value, graph: Graph) -> None:
        """AccumulateGrad: keep the first gradient, add later ones (in place, unless the first is a view)."""
        if self.first is not None and self.first.view:
            graph.allocate(gradient.numel, gradient.width)
        if self.has_gradient or self.kept is None or gradient.buffer is None:
            return
        gradient.buffer.relabel(GRADIENT)
        self.kept.append(gradient.buffer)
        self.first = gradient
        self.has_gradient = True


class Graph:
    """Creates values and nodes in one ledger, with or without gradients, and counts saves for the early stop of checkpointing."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.grad_enabled = True
        self.stopped = False
        """True once a recomputation has produced every tensor its backward needs (torch's checkpoint early stop)."""
        self.saves = 0
        self.stop_at = -1
        self.kept: list[Value] | None = None
        """Tensors that operations keep outside autograd's saved tensors, where checkpointing cannot drop them (bitsandbytes)."""
        self.held: list[Value] = []
        """Tensors that names of the training loop hold through the backward."""
        self.gradients: list[Buffer] = []
        self._order = 0

    def parameter(self, accumulating: bool) -> Parameter:
        """The node of a trainable weight; `accumulating` when its gradient exists already."""
        return Parameter(None if accumulating else self.gradients)

    def keep_gradients(self, size: Size) -> None:
        """Gradients of layers that were extrapolated, not walked."""
        self.gradients.append(Buffer(self.ledger, size, GRADIENT))

    def allocate(self, numel: Size, width: int, component: int = ACTIVATION) -> Value:
        """A fresh tensor."""
        if self.stopped:
            return Value(None, numel, width)
        size = numel * width
        self.ledger.sizes.add(size)
        return Value(Buffer(self.ledger, size, component), numel, width)

    def needs_grad(self, *values: Value | None) -> bool:
        """Whether an operation on these values is recorded."""
        return self.grad_enabled and any(value is not None and value.node is not None for value in values)

    def save(self, count: int = 1) -> None:
        """Count saved tensors; a recomputation stops allocating once it has made them all."""
        self.saves += count
        if self.saves >= self.stop_at > 0:
            self.stopped = True

    def attach(self, output: Value, inputs: Sequence[Value | Node | None], backward: Backward) -> Value:
        """Give `output` a node that sends gradients to `inputs`."""
        self._order += 1
        nodes = tuple(value.node if isinstance(value, Value) else value for value in inputs)
        output.node = Node(self._order, nodes, backward)
        return output

    def backward(self, root: Value, gradient: Value | None = None) -> None:
        """Run the engine from `root`; `gradient` defaults to a scalar."""
        if root.node is None:
            return
        root.node.gradient = gradient or self.allocate(0, 4)
        del gradient
        ready: list[tuple[int, int, Node]] = [(-root.node.order, id(root.node), root.node)]
        queued = {id(root.node)}
        while ready:
            node = heapq.heappop(ready)[2]
            queued.discard(id(node))
            incoming, node.gradient = node.gradient, None
            function, node.backward = node.backward, None
            if function is None or incoming is None:
                continue
            gradients = list(function(incoming))
            del function, incoming
            for target in node.inputs:
                produced = gradients.pop(0)
                if target is None or produced is None:
                    continue
                if isinstance(target, Parameter):
                    target.accumulate(produced, self)
                else:
                    if target.gradient is None:
                        target.gradient = produced
                    elif target.gradient.view:
                        target.gradient = self.allocate(produced.numel, produced.width)
                    if id(target) not in queued:
                        queued.add(id(target))
                        heapq.heappush(ready, (-target.order, id(target), target))
                del produced
            node.inputs = ()
