"""Mllama's image tower and projector on symbolic values (transformers 5.23 `modeling_mllama.py`).

The tower's layers are not gradient-checkpointing layers in transformers, so with an adapter inside it all their activations stay.
Unit of rows is VISION: images * tiles * padded patches.
"""

from __future__ import annotations

from llamamath.planner.architecture import Architecture, VisionArchitecture
from llamamath.planner.memory import ops
from llamamath.planner.memory.attention import Heads, attend
from llamamath.planner.memory.autograd import Graph, Value
from llamamath.planner.memory.ledger import ACTIVATION, Buffer
from llamamath.planner.memory.polynomial import VISION, VISION_SQUARE
from llamamath.planner.memory.projections import Projections
from llamamath.planner.memory.settings import Settings


class VisionTower:
    """Turns images into the states that the cross-attention layers read."""

    def __init__(self, graph: Graph, architecture: Architecture, settings: Settings, project: Projections) -> None:
        self.graph = graph
        self.architecture = architecture
        self.settings = settings
        self.project = project

    def states(self) -> Value:
        """Projected states [vision tokens, text hidden_size], with everything the tower keeps for backward."""
        vision = self.architecture.vision
        if vision is None:
            return self.graph.allocate(0, 2)
        g, s = self.graph, self.settings
        pixels = g.allocate(VISION * (vision.patch_size**2 * vision.num_channels), 4)
        hidden = g.allocate(VISION * vision.hidden_size, s.load_width)
        if g.grad_enabled and s.checkpointing:
            g.attach(hidden, (), lambda grad: ())  # enable_input_require_grads hooks the patch embedding as well
        mask = g.allocate(VISION_SQUARE, s.load_width)
        kept: list[Buffer] = []
        hidden = self._norm(hidden)
        hidden = self._stack(hidden, vision, vision.num_hidden_layers, kept, gated=False)
        hidden = self._norm(hidden)
        hidden = self._stack(hidden, vision, vision.num_global_layers, kept, gated=True)
        intermediate = g.allocate(VISION * (vision.hidden_size * len(vision.intermediate_layers_indices)), hidden.width)
        joined = g.allocate(VISION * vision.output_dim, hidden.width)
        kept.clear()
        del intermediate
        if g.needs_grad(hidden):
            ops.keep_for(g, joined, hidden)
        del hidden, mask, pixels
        return self.project("multi_modal_projector", joined, VISION, vision.output_dim, self.architecture.hidden_size, tower="vision")

    def _stack(self, hidden: Value, vision: VisionArchitecture, count: int, kept: list[Buffer], *, gated: bool) -> Value:
        """`count` identical layers: one walked, the others extrapolated from what it retains."""
        ledger = self.graph.ledger
        before = list(ledger.live)
        trainable = self.project.trainable_bytes
        hidden = self._layer(hidden, vision, gated=gated)
        if hidden.node is None or hidden.width == 2:  # the encoder collects every output; the next norm saves an fp32 one anyway
            kept.append(Buffer(ledger, hidden.numel * hidden.width * (count - 1), ACTIVATION))
            before[ACTIVATION] += hidden.numel * hidden.width * (count - 1)
        retained = [max(0, now - then) for now, then in zip(ledger.live, before, strict=True)]
        if count == 1 or hidden.node is None:
            return hidden
        trainable = self.project.trainable_bytes - trainable
        held = [Buffer(ledger, amount * (count - 1), index) for index, amount in enumerate(retained) if amount]
        out = Value(hidden.buffer, hidden.numel, hidden.width)
        graph, accumulating = self.graph, self.settings.accumulating

        def backward(grad: Value) -> tuple[Value]:
            held.clear()
            if trainable and not accumulating:
                graph.keep_gradients(trainable * (count - 1))
            return (grad,)

        return graph.attach(out, (hidden,), backward)

    def _layer(self, hidden: Value, vision: VisionArchitecture, *, gated: bool) -> Value:
        g, h = self.graph, vision.hidden_size
        residual = hidden
        hidden = self._norm(hidden)
        q = self.project("q_proj", hidden, VISION, h, h, tower="vision")
        k = self.project("k_proj", hidden, VISION, h, h, tower="vision")
        v = self.project("v_proj", hidden, VISION, h, h, tower="vision")
        heads = Heads(
            heads=vision.attention_heads,
            key_value_heads=vision.attention_heads,
            head_dim=h // vision.attention_heads,
            rows=VISION,
            key_rows=VISION,
            scores=VISION_SQUARE,
            bias=VISION_SQUARE,
            shared_bias=True,
        )
        hidden = attend(g, "eager" if self.settings.attention == "eager" else "efficient", heads, q, k, v, autocast=self.settings.autocast)
        del q, k, v
        hidden = self.project("o_proj", hidden, VISION, h, h, tower="vision")
        if gated:
            hidden = ops.mul_constant(g, hidden)
        hidden = ops.add(g, residual, hidden)
        residual = hidden
        hidden = self._norm(hidden)
        hidden = self.project("fc1", hidden, VISION, h, vision.intermediate_size, tower="vision")
        hidden = ops.activation(g, hidden)
        hidden = self.project("fc2", hidden, VISION, vision.intermediate_size, h, tower="vision")
        if gated:
            hidden = ops.mul_constant(g, hidden)
        return ops.add(g, residual, hidden)

    def _norm(self, hidden: Value) -> Value:
        return ops.layer_norm(self.graph, hidden, VISION, autocast=self.settings.autocast)
