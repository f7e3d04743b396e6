"""Walks a model symbolically through a training step, a scoring pass and a generation, and keeps the worst instants.

Identical layers are walked once: the first and the last layer for real, those between as a block whose retained memory is what one of
them retains, times their number. Memory between the two ends is linear in the layer index, so the maximum is at an end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from llamamath.planner.architecture import Architecture
from llamamath.planner.memory import ops
from llamamath.planner.memory.autograd import Graph, Value
from llamamath.planner.memory.heads import Head
from llamamath.planner.memory.layers import Cache
from llamamath.planner.memory.ledger import ACTIVATION, KV_CACHE, LOGITS, TEMPORARY, Buffer, Instant, Ledger
from llamamath.planner.memory.other_layers import decoder_layer
from llamamath.planner.memory.polynomial import CACHED, LENGTH, MASK, ROWS, TOKENS, VISION, Size
from llamamath.planner.memory.settings import Settings
from llamamath.planner.memory.vision import VisionTower
from llamamath.planner.parameters import weights

Layer = Callable[[Value], Value]


class Walk:
    """One symbolic model. Each public method walks one pass; `ledger.instants()` has the result."""

    def __init__(self, architecture: Architecture, settings: Settings, *, deep: bool = False) -> None:
        self.architecture = architecture
        self.settings = settings
        self.deep = deep
        """Walk every decoder layer instead of extrapolating from one."""
        self.ledger = Ledger()
        self.graph = Graph(self.ledger)
        self.layers = decoder_layer(self.graph, architecture, settings)
        self.vision: Value | None = None
        self._stops: dict[str, int] = {}
        self.kept_between: Size = 0
        """What layers that were extrapolated add to `graph.kept`."""
        width = settings.embedding_width
        numel = architecture.vocab_size * architecture.hidden_size
        self.embedding = Value(None, numel, width)
        self.head_weight = self.embedding if architecture.tie_word_embeddings else Value(None, numel, width)
        if settings.train_base:
            for weight in {id(value): value for value in (self.embedding, self.head_weight)}.values():
                weight.node = self.graph.parameter(settings.accumulating)

    # -- passes

    def train_step(self) -> None:
        """Forward, loss and backward of one micro-batch. DPO's reference forward runs while the policy's graph is alive."""
        g, s, ledger = self.graph, self.settings, self.ledger
        ledger.enter("forward")
        last_graph = [Buffer(ledger, self._kept_by_a_graph(), ACTIVATION)] if s.keeps_last_graph else []
        inputs = [g.allocate(TOKENS, 8 * (6 if s.method == "grpo" else 3))]
        cast_cache = [Buffer(ledger, self.autocast_cache_bytes(), TEMPORARY)]
        hidden, shared = self._backbone()
        ledger.where = "loss"
        loss = self._head(s).loss(hidden)
        del hidden
        if s.method == "dpo" and s.reference:
            self.score()
            ledger.enter("forward")
        cast_cache.clear()
        last_graph.clear()
        if not s.checkpointing:
            shared.clear()
        ledger.enter("backward")
        ledger.where = "loss backward"
        g.backward(loss)
        g.held.clear()
        shared.clear()
        inputs.clear()

    def score(self, *, adapters: bool = False, phase: str = "score") -> None:
        """Log-probabilities without gradients: the reference (adapters off), the old policy, or an evaluation batch (adapters on)."""
        g = self.graph
        settings = self.settings if adapters else replace(self.settings, rank=0)
        self.ledger.enter(phase)
        self.ledger.where = "forward without gradients"
        g.grad_enabled = False
        inputs = g.allocate(TOKENS, 8 * 3)
        cast_cache = Buffer(self.ledger, self.autocast_cache_bytes(without_gradients=True), TEMPORARY)
        kept, self.layers = self.layers, decoder_layer(g, self.architecture, settings)
        hidden, shared = self._backbone()
        self._head(settings).loss(hidden)
        self.layers = kept
        g.grad_enabled = True
        del inputs, hidden, shared, cast_cache

    def generate(self) -> None:
        """Prefill of the prompts, then a decode step at the longest length. TOKENS is the prompt's in the first and ROWS in the second."""
        g, a = self.graph, self.architecture
        g.grad_enabled = False
        cast_cache = Buffer(self.ledger, self.autocast_cache_bytes(without_gradients=True), TEMPORARY)
        self.ledger.enter("prefill")
        self.ledger.where = "prefill"
        hidden = embedded = self._embed()
        shared = self._shared()
        if self.settings.images:
            self.vision = VisionTower(g, a, self.settings, self.layers.project).states()
        cache = Cache([])
        hidden = self._layer("self", cache)(hidden)
        per_layer = 2 * a.key_value_size * self.settings.residual_width * TOKENS
        for kept in cache.kept:
            if kept.buffer is not None:
                kept.buffer.relabel(KV_CACHE)
        del kept
        filled = [Buffer(self.ledger, per_layer * max(0, a.num_self_attention_layers - 2), KV_CACHE)]
        if self.vision is not None:
            vision_layer = 2 * a.key_value_size * self.settings.residual_width * VISION
            filled.append(Buffer(self.ledger, vision_layer * len(a.cross_attention_layers), KV_CACHE))
        hidden = self._layer("self", cache)(hidden)
        hidden = self.layers.norm(hidden, TOKENS)
        del embedded
        self._sample()
        cache.kept.clear()
        filled.clear()
        shared.clear()
        self.vision = None
        del hidden
        self._decode()
        del cast_cache

    def _decode(self) -> None:
        g, a, s = self.graph, self.architecture, self.settings
        self.ledger.enter("decode")
        self.ledger.where = "decoding at the longest length"
        width = s.residual_width
        filled = [Buffer(self.ledger, 2 * a.key_value_size * width * a.num_self_attention_layers * CACHED, KV_CACHE)]
        if s.images:
            filled.append(Buffer(self.ledger, 2 * a.key_value_size * width * len(a.cross_attention_layers) * VISION, KV_CACHE))
        ids = g.allocate(CACHED, 8 * 2)
        last_token = [
            g.allocate(ROWS * a.vocab_size, 4, LOGITS) for _ in range(2)
        ]  # generate's loop still names its scores and probabilities
        grown = Buffer(self.ledger, a.key_value_size * width * CACHED, KV_CACHE)  # torch.cat: the new keys beside the old
        hidden = g.allocate(ROWS * a.hidden_size, width)
        if s.masked and s.attention == "efficient":
            mask = [g.allocate(CACHED, 1), g.allocate(CACHED, width)]
            mask.clear()
        states = self.layers.project("gate_proj", hidden, ROWS, a.hidden_size, a.intermediate_size)
        del states, grown
        last_token.clear()
        self._sample()
        del ids, hidden
        filled.clear()

    def _sample(self) -> None:
        """Next-token logits: in the compute dtype, accelerate's fp32 copy of the output, generate's own fp32 copy, probabilities.

        PEFT calls the base model's `generate`, so its forward is neither wrapped by accelerate (no copy) nor under autocast.
        """
        g, v = self.graph, self.architecture.vocab_size
        wide = g.allocate(ROWS * v, self.settings.residual_width, LOGITS)
        if self.settings.train_base:
            logits, wide = wide, g.allocate(ROWS * v, 4, LOGITS)
            del logits
        copies = [g.allocate(ROWS * v, 4, LOGITS), g.allocate(ROWS * v, 4, LOGITS)]
        copies.clear()
        del wide

    # -- the model

    def _kept_by_a_graph(self) -> Size:
        """What quantised layers keep of one micro-batch outside autograd's saved tensors, which no backward frees: their inputs."""
        scratch = Walk(self.architecture, self.settings)
        kept: list[Value] = []
        scratch.graph.kept = kept
        scratch._head(scratch.settings).loss(scratch._backbone()[0])
        return _distinct(kept) + scratch.kept_between

    def autocast_cache_bytes(self, *, without_gradients: bool = False) -> int:
        """2-byte casts of trained fp32 weights, which autocast keeps until it exits. In a forward with gradients and without
        checkpointing the graph keeps them, and they are counted there."""
        s = self.settings
        if not s.autocast or not (s.checkpointing or without_gradients):
            return 0
        if s.train_base and s.load_width == 4:
            return sum(2 * weight.numel * weight.copies for weight in weights(self.architecture) if weight.role == "linear")
        if s.rank and s.adapter_width == 4 and not (s.fused and s.quantized):
            adapted = (weight for weight in weights(self.architecture) if weight.role == "linear" and s.adapts(weight.module, weight.tower))
            return sum(2 * s.rank * sum(weight.shape) * weight.copies for weight in adapted)
        return 0

    def _head(self, settings: Settings) -> Head:
        return Head(self.graph, self.architecture, settings, self.layers.project, self.head_weight)

    def _backbone(self) -> tuple[Value, list[Value]]:
        """Embedding, all layers and the final norm; and what the layers share (mask, rotary tables)."""
        g, s, a, ledger = self.graph, self.settings, self.architecture, self.ledger
        ledger.where = "embedding"
        hidden = embedded = self._embed()  # the model's forward keeps `inputs_embeds` to its end
        shared = self._shared()
        if s.images:
            ledger.where = "vision tower"
            self.vision = VisionTower(g, a, s, self.layers.project).states()
        for kind, count in self._blocks():
            ledger.where = f"{kind}-attention layer"
            box = [hidden]
            del hidden
            hidden = self._layer_in_place(kind, box) if count == 1 else self._extrapolated(kind, count, box)
        self.vision = None
        ledger.where = "final norm"
        normed = self.layers.norm(hidden, TOKENS)
        del embedded, hidden
        return normed, shared

    def _embed(self) -> Value:
        g, s, a = self.graph, self.settings, self.architecture
        out = g.allocate(TOKENS * a.hidden_size, self.embedding.width)
        if g.grad_enabled and s.train_base:
            numel, width = self.embedding.numel, self.embedding.width

            def backward(grad: Value) -> Sequence[Value | None]:
                self.ledger.where = "embedding backward"
                return (g.allocate(numel, width),)

            g.attach(out, (self.embedding,), backward)
        elif g.grad_enabled and s.checkpointing:
            leaf = out if a.scaled_embeddings else None  # a leaf of the graph, which holds it when something else follows
            g.attach(out, (), lambda grad: () if leaf is None else ())  # enable_input_require_grads
        return ops.scale(g, out) if a.scaled_embeddings else out

    def _shared(self) -> list[Value]:
        g, s, a = self.graph, self.settings, self.architecture
        tables = [g.allocate(LENGTH * a.head_dim, 2 * self.embedding.width)]
        if s.attention == "eager" or (s.masked and s.attention == "efficient"):
            tables.append(g.allocate(MASK, 1 if s.attention == "efficient" else s.load_width))
        return tables

    def _blocks(self) -> list[tuple[str, int]]:
        """Layers in order as (kind, count): walked where count is 1. Without an image the cross-attention layers are skipped."""
        total = self.architecture.num_self_attention_layers
        cross = len(self.architecture.cross_attention_layers) if self.settings.images else 0
        counts = [("self", 1), ("self", total - 2), ("cross", cross - 1), ("cross", min(cross, 1)), ("self", min(total - 1, 1))]
        return [(kind, count) for kind, count in counts if count > 0]

    def _layer(self, kind: str, cache: Cache | None = None) -> Layer:
        vision = self.vision
        if kind == "cross" and vision is not None:
            return lambda hidden: self.layers.cross_attention(hidden, vision, cache)
        return lambda hidden: self.layers.self_attention(hidden, cache)

    def _layer_in_place(self, kind: str, box: list[Value]) -> Value:
        """One layer on the value in `box`, whose last name outside the layer is dropped when the layer returns."""
        if self.settings.checkpointing and self.graph.grad_enabled:
            return self._checkpointed(kind, box)
        hidden = box[0]
        out = self._layer(kind)(hidden)
        box.clear()
        return out

    def _checkpointed(self, kind: str, box: list[Value]) -> Value:
        """torch.utils.checkpoint: only the layer's input is kept; backward runs the layer again."""
        g, s = self.graph, self.settings
        hidden = box.pop()
        kept: list[Value] = []
        g.grad_enabled = False
        g.kept = kept if s.keeps_inputs and not s.reentrant else None
        out = self._layer(kind)(hidden)
        g.grad_enabled = True
        g.kept = None
        node, numel, width = hidden.node, hidden.numel, hidden.width
        stop = 0 if s.reentrant else self._saves(kind, hidden)
        stored = [] if s.offload_checkpoints else [hidden]
        del hidden
        vision = self.vision

        def backward(grad: Value) -> Sequence[Value | None]:
            self.ledger.where = f"{kind}-attention layer, recomputed, and its backward"
            source = stored.pop() if stored else g.allocate(numel, width)
            leaf = Value(source.buffer, numel, width)  # the checkpoint holds its input until the layer's backward is over
            received: list[Value] = []

            def collect(gradient: Value) -> Sequence[Value | None]:
                received.append(gradient)
                return ()

            g.attach(leaf, (), collect)
            early = self._before_recomputation(numel, width)
            previous, self.vision = self.vision, vision
            g.saves, g.stop_at = 0, stop
            again = self._layer(kind)(leaf)
            g.stopped, g.stop_at = False, -1
            self.vision = previous
            early.clear()
            del leaf
            g.backward(again, grad)
            kept.clear()
            del source
            return tuple(received) or (None,)

        out.node = None
        return g.attach(out, (node,), backward)

    def _before_recomputation(self, numel: Size, width: int) -> list[Value]:
        """Gradients that exist when torch recomputes the layer: its last operations save nothing, so their backward runs first.

        The scaling of the down projection's adapter and granite's scaling of the branch; a quantised down projection without an adapter
        keeps its operands outside autograd's saved tensors, so even its backward runs first. Reentrant checkpointing recomputes at once,
        and so does a layer that ends in a norm (gemma2).
        """
        s = self.settings
        if s.reentrant or self.architecture.post_norms:
            return []
        early = [self.graph.allocate(numel, width)] if self.architecture.scaled_residual else []
        if s.adapts(self.layers.down_projection):
            widened = not s.quantized and not s.autocast and s.adapter_width > width
            early.append(self.graph.allocate(numel, s.adapter_width if widened else width))
            if widened:
                early.append(self.graph.allocate(numel, width))  # the base's share of the gradient, narrowed again
        elif s.quantized:
            early.append(self.graph.allocate(TOKENS * self.architecture.intermediate_size, s.compute_width))
        return early

    def _saves(self, kind: str, hidden: Value) -> int:
        """Tensors one layer saves, counted on a scratch ledger."""
        if kind not in self._stops:
            scratch = Walk(self.architecture, self.settings)
            leaf = scratch.graph.allocate(hidden.numel, hidden.width)
            scratch.graph.attach(leaf, (), lambda grad: ())
            if self.vision is not None:
                scratch.vision = scratch.graph.allocate(self.vision.numel, self.vision.width)
            scratch._layer(kind)(leaf)
            self._stops[kind] = scratch.graph.saves
        return self._stops[kind]

    def _extrapolated(self, kind: str, count: int, box: list[Value]) -> Value:
        """`count` layers: one walked, and a buffer for what the others retain, freed (and their gradients left) in backward."""
        if self.deep:
            for _ in range(count):
                box.append(self._layer_in_place(kind, box))
            return box.pop()
        g, ledger = self.graph, self.ledger
        before = list(ledger.live)
        trainable, kept = self.layers.project.trainable_bytes, len(g.kept or ())
        hidden = self._layer_in_place(kind, box)
        trainable = self.layers.project.trainable_bytes - trainable
        self.kept_between += _distinct((g.kept or [])[kept:]) * (count - 1)
        retained = [now - then for now, then in zip(ledger.live, before, strict=True)]
        held = [Buffer(ledger, amount * (count - 1), index) for index, amount in enumerate(retained) if amount > 0]
        if hidden.node is None:
            return hidden
        out = Value(hidden.buffer, hidden.numel, hidden.width)

        def backward(grad: Value) -> Sequence[Value | None]:
            held.clear()
            if trainable and not self.settings.accumulating:
                g.keep_gradients(trainable * (count - 1))
            return (grad,)

        return g.attach(out, (hidden,), backward)


def _distinct(values: list[Value]) -> Size:
    """Bytes of the tensors in `values`, each counted once."""
    sizes = {id(value.buffer): value.numel * value.width for value in values if value.buffer is not None}
    return sum(sizes.values())


@dataclass(frozen=True, slots=True)
class Walked:
    """What walking a model once yields. instants: by pass (`forward`, `backward`, `score`, `prefill`, `decode`, `evaluate`), without the
    static memory. largest: the biggest single tensors of the training step."""

    instants: dict[str, tuple[Instant, ...]]
    largest: tuple[tuple[int, ...], ...]


@lru_cache(maxsize=1024)
def walked(architecture: Architecture, settings: Settings) -> Walked:
    """Walk `architecture` under `settings` through every pass its method has."""
    result: dict[str, tuple[Instant, ...]] = {}
    walk = Walk(architecture, settings)
    walk.train_step()
    result.update(walk.ledger.instants())
    if settings.method == "grpo":
        if settings.reference or settings.old_log_probs:
            scoring = Walk(architecture, settings)
            scoring.score(adapters=settings.old_log_probs)
            result.update(scoring.ledger.instants())
        generating = Walk(architecture, replace(settings, autocast=settings.autocast and settings.train_base))
        generating.generate()
        result.update(generating.ledger.instants())
    if settings.evaluating:
        evaluating = Walk(architecture, settings)
        evaluating.score(adapters=True, phase="evaluate")
        result.update(evaluating.ledger.instants())
    return Walked(result, walk.ledger.largest())
