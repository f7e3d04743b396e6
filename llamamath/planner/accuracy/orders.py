"""Orders in which batches of varying length may have come, for runs whose source gives the statistics of its samples' lengths.

What torch's default allocator reserves depends on the order: a batch longer than all before it finds no cached block large enough for its
logits, and what was cached for shorter ones stays. A source gives a mean, a deviation and bounds, never the order, so several are drawn
(log-normal with those moments, fixed seeds) and the memory model takes the median over them.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from llamamath.planner.accuracy.fields import Lengths

NUM_ORDERS = 9
MAX_SAMPLES = 5000


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How a run's samples become batches. limit: tokens. drops_long: samples above the limit are left out, not cut to it."""

    limit: int
    batch_size: int
    num_samples: int
    drops_long: bool


def orders(lengths: Lengths, sampling: Sampling) -> tuple[tuple[int, ...], ...]:
    """NUM_ORDERS possible orders of padded batch lengths; () when dropping leaves nothing."""
    drawn = (_order(lengths, sampling, seed) for seed in range(NUM_ORDERS))
    return tuple(order for order in drawn if order)


def _order(lengths: Lengths, sampling: Sampling, seed: int) -> tuple[int, ...]:
    """One epoch: log-normal lengths within the stated bounds, dropped or cut at the limit, each batch as long as its longest sample."""
    generator = random.Random(seed)
    variance = math.log(1 + (lengths.deviation / lengths.mean) ** 2)
    location = math.log(lengths.mean) - variance / 2
    kept: list[int] = []
    for _ in range(min(sampling.num_samples, MAX_SAMPLES)):
        length = min(max(round(generator.lognormvariate(location, math.sqrt(variance))), lengths.shortest), lengths.longest)
        if length <= sampling.limit:
            kept.append(length)
        elif not sampling.drops_long:
            kept.append(sampling.limit)
    size = sampling.batch_size
    return tuple(max(kept[start : start + size]) for start in range(0, len(kept) - size + 1, size))
