"""Decoder layers of other modelling code, for describing published runs: LitGPT's, torchtune's, and Qwen 1's own.

Sources: Lightning-AI/litgpt at 8641822 and 00af8b0d (`model.py` CausalSelfAttention, LLaMAMLP, apply_rope; `lora.py` LoRALinear,
LoRAQKVLinear); pytorch/torchtune at 1814feb17 (`modules/attention.py`, `position_embeddings.py`, `peft/lora.py`); Qwen/Qwen-7B
`modeling_qwen.py` of November 2023.
"""

from __future__ import annotations

from llamamath.planner.architecture import Architecture
from llamamath.planner.memory import ops
from llamamath.planner.memory.attention import Heads, attend, repeat
from llamamath.planner.memory.autograd import Graph, Value
from llamamath.planner.memory.layers import Cache, DecoderLayer
from llamamath.planner.memory.polynomial import TOKENS
from llamamath.planner.memory.settings import Settings

QUERY_KEY_VALUE = ("q_proj", "k_proj", "v_proj")


def decoder_layer(graph: Graph, architecture: Architecture, settings: Settings) -> DecoderLayer:
    """The layer of that model in that modelling code."""
    if architecture.family == "qwen":
        return QwenLayer(graph, architecture, settings)
    return {"litgpt": LitgptLayer, "torchtune": TorchtuneLayer}.get(settings.layers, DecoderLayer)(graph, architecture, settings)


class LitgptLayer(DecoderLayer):
    """One fused product for q, k and v, copied apart; keys and values repeated to all heads; rotary embedding through float32 tables."""

    def _attention(self, hidden: Value, cache: Cache | None) -> Value:
        g, a, s = self.graph, self.architecture, self.settings
        joined = self._query_key_value(hidden)
        del hidden
        q, k, v = ops.split(g, joined, TOKENS * a.query_size, TOKENS * a.key_value_size, TOKENS * a.key_value_size)
        shape = Heads(heads=a.num_attention_heads, key_value_heads=a.num_attention_heads, head_dim=a.head_dim)
        if a.num_key_value_heads != a.num_attention_heads:  # else the parts are views, and saving v keeps the whole product
            q, k, v = ops.scale(g, q), repeat(g, k, shape), repeat(g, v, shape)
        q = self._rotated(q)
        k = self._rotated(k)
        out = attend(g, s.attention, shape, q, k, v, autocast=False)
        del q, k, v, joined
        out = ops.scale(g, out)  # contiguous by heads, as q is: reassembling the heads copies it
        return self.project("o_proj", out, TOKENS, a.query_size, a.hidden_size)

    def _rotated(self, x: Value) -> Value:
        """apply_rope, then `cat` with the part that is not rotated (nothing)."""
        wide = ops.rotate(self.graph, x, table_width=4)
        narrowed = ops.cast(self.graph, wide, x.width)
        del wide
        return ops.clone(self.graph, narrowed)

    def _query_key_value(self, hidden: Value) -> Value:
        """LoRAQKVLinear: one A for all adapted of q, k and v, one B, its output padded with zeros to the whole width, scaled and added."""
        g, a, s = self.graph, self.architecture, self.settings
        h, width = a.hidden_size, a.query_size + 2 * a.key_value_size
        pretrained = self.project.base(hidden, TOKENS, h, width)
        sizes = {"q_proj": a.query_size, "k_proj": a.key_value_size, "v_proj": a.key_value_size}
        adapted = [sizes[name] for name in QUERY_KEY_VALUE if s.adapts(name)]
        if not adapted:
            return pretrained
        dropped = ops.dropout(g, hidden) if s.dropout else hidden
        down = self.project.linear(dropped, TOKENS * (s.rank * len(adapted)), self.project.adapter(h * s.rank * len(adapted)))
        del dropped
        up = self.project.linear(down, TOKENS * sum(adapted), self.project.adapter(sum(adapted) * s.rank))
        del down
        if len(adapted) < len(sizes):
            up = self._padded(up, width)
        branch = ops.scale(g, up)
        total = ops.add(g, pretrained, branch)
        del pretrained, up, branch
        return total

    def _padded(self, x: Value, width: int) -> Value:
        """zero_pad: index_copy into zeros, which saves what it copies; backward selects."""
        out = self.graph.allocate(TOKENS * width, x.width)
        return ops.keep_for(self.graph, out, x, x) if self.graph.needs_grad(x) else out

    def _mlp(self, x: Value) -> Value:
        g, a = self.graph, self.architecture
        h, i = a.hidden_size, a.intermediate_size
        gate = self.project("gate_proj", x, TOKENS, h, i)
        up = self.project("up_proj", x, TOKENS, h, i)
        del x
        active = ops.activation(g, gate)
        del gate
        product = ops.mul(g, active, up)
        del active, up
        return self.project("down_proj", product, TOKENS, i, h)


class TorchtuneLayer(DecoderLayer):
    """Separate projections; rotary embedding in float32; keys and values repeated to all heads."""

    def _attention(self, hidden: Value, cache: Cache | None) -> Value:
        g, a, s = self.graph, self.architecture, self.settings
        h, q_size, kv_size = a.hidden_size, a.query_size, a.key_value_size
        q = self._rotated(self.project("q_proj", hidden, TOKENS, h, q_size))
        k = self.project("k_proj", hidden, TOKENS, h, kv_size)
        v = self.project("v_proj", hidden, TOKENS, h, kv_size)
        del hidden
        k = self._rotated(k)
        shape = Heads(heads=a.num_attention_heads, key_value_heads=a.num_attention_heads, head_dim=a.head_dim)
        if a.num_key_value_heads != a.num_attention_heads:
            k, v = repeat(g, k, shape), repeat(g, v, shape)
        out = attend(g, s.attention, shape, q, k, v, autocast=False)
        del q, k, v
        return self.project("o_proj", out, TOKENS, q_size, h)

    def _rotated(self, x: Value) -> Value:
        """RotaryPositionalEmbeddings: `.float()`, products of the two halves, `stack`, cast back; saves only the table."""
        g = self.graph
        wide = ops.cast(g, x, 4)
        turned = ops.rotate(g, wide)
        del wide
        stacked = ops.clone(g, turned)
        del turned
        return ops.cast(g, stacked, x.width)


class QwenLayer(DecoderLayer):
    """Qwen 1: one c_attn, rotary embedding in float32, an MLP of w1, w2 and c_proj."""

    down_projection = "c_proj"

    def _attention(self, hidden: Value, cache: Cache | None) -> Value:
        g, a, s = self.graph, self.architecture, self.settings
        h = a.hidden_size
        joined = self.project("c_attn", hidden, TOKENS, h, 3 * h)
        del hidden
        q, k, v = ops.split(g, joined, TOKENS * h, TOKENS * h, TOKENS * h)  # v stays a view: saving it keeps the whole product
        del joined
        q = self._rotated(q)
        k = self._rotated(k)
        if cache is not None:
            cache.kept += [g.allocate(k.numel, k.width), g.allocate(v.numel, v.width)]
            k, v = cache.kept[-2:]
        shape = Heads(heads=a.num_attention_heads, key_value_heads=a.num_key_value_heads, head_dim=a.head_dim)
        out = attend(g, s.attention, shape, q, k, v, autocast=s.autocast)
        del q, k, v
        return self.project("c_proj", out, TOKENS, h, h)

    def _rotated(self, x: Value) -> Value:
        """apply_rotary_pos_emb: `.float()`, rotation, `cat` with the part that is not rotated (nothing), `.type_as`."""
        g = self.graph
        wide = ops.cast(g, x, 4)
        turned = ops.rotate(g, wide)
        joined = ops.clone(g, turned)
        del wide, turned
        return ops.cast(g, joined, x.width)

    def _mlp(self, x: Value) -> Value:
        g, a = self.graph, self.architecture
        h, i = a.hidden_size, a.intermediate_size
        first = self.project("w1", x, TOKENS, h, i)
        second = self.project("w2", x, TOKENS, h, i)
        del x
        active = ops.activation(g, second)
        del second
        product = ops.mul(g, first, active)
        del first, active
        return self.project("c_proj", product, TOKENS, i, h)
