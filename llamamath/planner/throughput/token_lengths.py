"""How long the data's examples are, in tokens: what lengths are chosen from, and how long a padded micro-batch is expected to be."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from llamamath.errors import FieldError

PERCENTILES = (50, 75, 90, 95, 99, 100)
GRANULARITY = 64
"""Lengths are chosen as multiples of this: whole tiles of the attention kernels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLengths:
    """(percentile, tokens) in rising order: of whole examples (sft, dpo) or of prompts (grpo)."""

    percentiles: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        ranks, tokens = [rank for rank, _ in self.percentiles], [length for _, length in self.percentiles]
        rising = ranks == sorted(set(ranks)) and tokens == sorted(tokens)
        if not self.percentiles or not rising or ranks[0] < 0 or ranks[-1] > 100 or tokens[0] < 1:
            raise FieldError("token lengths", self.percentiles, "percentiles (0 to 100) with tokens above 0, both rising")

    def at(self, percentile: float) -> float:
        """Tokens at that percentile, linear between the known ones, flat beyond them."""
        below_rank, below = self.percentiles[0]
        for rank, tokens in self.percentiles:
            if percentile <= rank:
                return tokens if rank == below_rank else below + (tokens - below) * (percentile - below_rank) / (rank - below_rank)
            below_rank, below = rank, tokens
        return below

    def longest_of(self, count: int) -> float:
        """Expected length of the longest of `count` examples, to which a micro-batch is padded: the quantile count / (count + 1)."""
        return self.at(100 * count / (count + 1))

    def holding(self, percentile: int) -> int:
        """The length, a multiple of GRANULARITY, that leaves that share of the examples uncut."""
        return -(-round(self.at(percentile)) // GRANULARITY) * GRANULARITY


def measure(lengths: Iterable[int]) -> TokenLengths:
    """The TokenLengths of a list of lengths (nearest-rank percentiles). Raises FieldError if it is empty."""
    ordered = sorted(lengths)
    if not ordered:
        raise FieldError("token lengths", None, "at least one example")
    found = [(rank, ordered[max(0, -(-rank * len(ordered) // 100) - 1)]) for rank in PERCENTILES]
    return TokenLengths(percentiles=tuple(found))
