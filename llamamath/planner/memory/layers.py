"""One decoder layer of every family, written line by line after transformers' modeling code (5.23), on symbolic values."""

from __future__ import annotations

from dataclasses import dataclass, replace

from llamamath.planner.architecture import Architecture
from llamamath.planner.memory import ops
from llamamath.planner.memory.attention import Heads, attend, repeat
from llamamath.planner.memory.autograd import Graph, Value
from llamamath.planner.memory.polynomial import TOKENS, VISION, VISION_BIAS, VISION_PAIRS, Size
from llamamath.planner.memory.projections import Projections
from llamamath.planner.memory.settings import Settings


@dataclass(slots=True)
class Cache:
    """Collects the keys and values a layer leaves in the KV cache while generating (None outside generation)."""

    kept: list[Value]


class DecoderLayer:
    """The layers of one model under one set of settings, for `rows` query tokens."""

    down_projection = "down_proj"
    """The MLP's last linear."""

    def __init__(self, graph: Graph, architecture: Architecture, settings: Settings) -> None:
        self.graph = graph
        self.architecture = architecture
        self.settings = settings
        self.project = Projections(graph, settings)
        self.norm_width = 4 if settings.kbit_preparation else settings.load_width
        """`prepare_model_for_kbit_training` casts every remaining 2-byte weight, norms included, to fp32."""

    def self_attention(self, hidden: Value, cache: Cache | None = None) -> Value:
        """A layer that attends to the text: norm, attention, residual, norm, MLP, residual."""
        g, a = self.graph, self.architecture
        residual = hidden
        hidden = self.norm(hidden, TOKENS)
        hidden = self._attention(hidden, cache)
        if a.post_norms:
            hidden = self.norm(hidden, TOKENS)
        if a.scaled_residual:
            hidden = ops.scale(g, hidden)
        hidden = ops.add(g, residual, hidden)
        del residual
        return self._feed_forward(hidden, gated=False)

    def cross_attention(self, hidden: Value, vision: Value, cache: Cache | None = None) -> Value:
        """Mllama's layer that attends to the image: tanh-gated attention and MLP."""
        g = self.graph
        residual = hidden
        hidden = self.norm(hidden, TOKENS)
        hidden = self._vision_attention(hidden, vision, cache)
        hidden = ops.mul_constant(g, hidden)
        hidden = ops.add(g, residual, hidden)
        del residual
        return self._feed_forward(hidden, gated=True)

    def norm(self, x: Value, rows: Size, width: int | None = None) -> Value:
        """RMSNorm of `rows` vectors of `width` (default hidden_size)."""
        s, a = self.settings, self.architecture
        weight = self.project.weight(width or a.hidden_size, self.norm_width)
        return ops.rms_norm(self.graph, x, rows, weight, gemma=a.family == "gemma2", fused=s.fused)

    def _attention(self, hidden: Value, cache: Cache | None) -> Value:
        g, a, s = self.graph, self.architecture, self.settings
        h, q_size, kv_size = a.hidden_size, a.query_size, a.key_value_size
        if a.fused_projections:
            joined = self.project("qkv_proj", hidden, TOKENS, h, q_size + 2 * kv_size)
            q = ops.narrow(g, joined, TOKENS * q_size)
            k = ops.narrow(g, joined, TOKENS * kv_size)
            v = ops.narrow(g, joined, TOKENS * kv_size)
            del joined
        else:
            shared = self.project.fused_input(hidden, ("q_proj", "k_proj", "v_proj"))
            q = self._query(shared, h, q_size)
            k = self._key(shared, h, kv_size)
            v = self.project("v_proj", shared, TOKENS, h, kv_size)
            del shared
        del hidden
        q, k = self._rotate(q, k)
        if cache is not None:
            cache.kept += [g.allocate(k.numel, k.width), g.allocate(v.numel, v.width)]  # torch.cat into the cache
            k, v = cache.kept[-2:]
        shape = Heads(
            heads=a.num_attention_heads,
            key_value_heads=a.num_key_value_heads,
            head_dim=a.head_dim,
            softcap=a.attn_logit_softcapping is not None,
        )
        if s.repeats_key_values and s.attention.startswith("flash"):
            k, v = repeat(g, k, shape), repeat(g, v, shape)
            shape = replace(shape, key_value_heads=a.num_attention_heads)
        out = attend(g, s.attention, shape, q, k, v, autocast=s.autocast)
        del q, k, v
        if a.family == "phi3" and s.attention == "flash":
            out = ops.clone(g, out)  # q comes contiguous by heads out of cat, so flash's output does too, and is copied
        return self.project("o_proj", out, TOKENS, q_size, h)

    def _rotate(self, q: Value, k: Value) -> tuple[Value, Value]:
        """Rotary embedding of q, then of k, as in apply_rotary_pos_emb (the inputs live until both are done)."""
        g, a = self.graph, self.architecture
        if a.family == "phi3":
            rotated = ops.rotate(g, q)
            rotated = ops.clone(g, rotated)  # cat with the part that is not rotated
            key = ops.rotate(g, k)
            return rotated, ops.clone(g, key)
        rotated = ops.rotate(g, q, fused=self.settings.fused)
        return rotated, ops.rotate(g, k, fused=self.settings.fused)

    def _query(self, hidden: Value, h: int, size: int) -> Value:
        q = self.project("q_proj", hidden, TOKENS, h, size)
        if self.architecture.query_key_norm:
            q = self.norm(q, TOKENS * self.architecture.num_attention_heads, self.architecture.head_dim)
        return q

    def _key(self, hidden: Value, h: int, size: int) -> Value:
        k = self.project("k_proj", hidden, TOKENS, h, size)
        if self.architecture.query_key_norm:
            k = self.norm(k, TOKENS * self.architecture.num_key_value_heads, self.architecture.head_dim)
        return k

    def _vision_attention(self, hidden: Value, vision: Value, cache: Cache | None) -> Value:
        g, a, s = self.graph, self.architecture, self.settings
        h, q_size, kv_size = a.hidden_size, a.query_size, a.key_value_size
        q = self.project("q_proj", hidden, TOKENS, h, q_size)
        del hidden
        q = self.norm(q, TOKENS * a.num_attention_heads, a.head_dim)
        k = self.project("k_proj", vision, VISION, h, kv_size)
        v = self.project("v_proj", vision, VISION, h, kv_size)
        k = self.norm(k, VISION * a.num_key_value_heads, a.head_dim)
        if cache is not None:
            cache.kept += [k, v]
        shape = Heads(
            heads=a.num_attention_heads,
            key_value_heads=a.num_key_value_heads,
            head_dim=a.head_dim,
            key_rows=VISION,
            scores=VISION_PAIRS,
            bias=VISION_BIAS,
        )
        out = attend(g, "eager" if s.attention == "eager" else "efficient", shape, q, k, v, autocast=s.autocast)
        del q, k, v
        return self.project("o_proj", out, TOKENS, q_size, h)

    def _feed_forward(self, hidden: Value, *, gated: bool) -> Value:
        g, a = self.graph, self.architecture
        residual = hidden
        hidden = self.norm(hidden, TOKENS)
        hidden = self._mlp(hidden)
        if a.post_norms:
            hidden = self.norm(hidden, TOKENS)
        if a.scaled_residual:
            hidden = ops.scale(g, hidden)
        if gated:
            hidden = ops.mul_constant(g, ops.mul_constant(g, hidden))
        return ops.add(g, residual, hidden)

    def _mlp(self, x: Value) -> Value:
        g, a = self.graph, self.architecture
        h, i = a.hidden_size, a.intermediate_size
        if a.fused_projections:
            joined = self.project("gate_up_proj", x, TOKENS, h, 2 * i)
            del x
            gate = ops.narrow(g, joined, TOKENS * i)
            up = ops.narrow(g, joined, TOKENS * i)
            active = ops.activation(g, gate)
            del gate, joined
            product = ops.mul(g, up, active)
            del up, active
            return self.project("down_proj", product, TOKENS, i, h)
        gate = self.project("gate_proj", x, TOKENS, h, i)
        active = ops.activation(g, gate)
        del gate
        up = self.project("up_proj", x, TOKENS, h, i)
        product = ops.mul(g, active, up)
        del active, up
        return self.project("down_proj", product, TOKENS, i, h)
