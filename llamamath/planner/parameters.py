"""Every weight tensor of an Architecture, so that counts and quantised sizes are sums over real shapes, not `params * bits`."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod


@dataclass(frozen=True, slots=True, kw_only=True)
class Weight:
    """`copies` tensors of one `shape`. `name` is the parameter path with `{layer}` in place of the layer index.

    role: `embedding`, `lm_head`, `linear` (weight of an nn.Linear other than lm_head, so quantised by bitsandbytes and adapted by
    `all-linear`), `bias`, `norm`, or `other` (convolutions, positional tables, gates: never quantised, never adapted).
    tower: `text`, `vision` or `projector`. shape of a linear is (out_features, in_features), as in torch.
    """

    name: str
    shape: tuple[int, ...]
    role: str
    copies: int = 1
    tower: str = "text"

    @property
    def numel(self) -> int:
        """Elements of one tensor."""
        return prod(self.shape)

    @property
    def module(self) -> str:
        """The last module name, which LoRA's `target_modules` matches: `q_proj` of `model.layers.{layer}.self_attn.q_proj.weight`."""
        return self.name.rsplit(".", 2)[-2]
