"""How many events per second the allocator model replays.

    python benchmarks/allocator_rate.py

Three streams, both modes: a regrowing KV cache (as tests/unit/test_allocator_replay.py), a step-like stack of activations, and random
sizes with hundreds of free blocks. Without a GPU or torch. On the development machine (2 shared cores): 0.8 to 1.3 million a second.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator

from llamamath.planner.allocator import CachingAllocator, Event, Recorder, alloc, free, replay, replay_on
from llamamath.units import MIB


def regrowing_cache() -> Iterator[Event]:
    """65 thousand events: 16 layers' keys and values, 256 to 1280 tokens, 64 KiB a token."""
    live: dict[int, int] = {}
    identity = 0
    for length in range(256, 1281):
        for tensor in range(32):
            yield alloc(identity, length * 65_536, "kv_cache")
            if tensor in live:
                yield free(live[tensor])
            live[tensor] = identity
            identity += 1


def steps(num_layers: int = 32, tensors: int = 30, num_steps: int = 100) -> Iterator[Event]:
    """Forward and backward: per layer some tensors stay, most are temporary; then all go in reverse."""
    generator = random.Random(0)
    sizes = [generator.choice((32, 4, 16, 1, 56)) * MIB + generator.randrange(4096) for _ in range(tensors)]
    identity = 0
    for _ in range(num_steps):
        saved: list[int] = []
        for _ in range(num_layers):
            for number, size in enumerate(sizes):
                yield alloc(identity, size, "activation")
                if number % 5 == 0:
                    saved.append(identity)
                else:
                    yield free(identity)
                identity += 1
        while saved:
            yield alloc(identity, 32 * MIB, "gradient")
            yield free(saved.pop())
            yield free(identity)
            identity += 1


def random_sizes(num_events: int = 300_000, num_live: int = 1000) -> Iterator[Event]:
    """Sizes over six orders of magnitude, freed in random order."""
    generator = random.Random(0)
    live: list[int] = []
    for identity in range(num_events):
        if len(live) < num_live or generator.random() < 0.5:
            yield alloc(identity, int(2 ** generator.uniform(8, 28)))
            live.append(identity)
        else:
            position = generator.randrange(len(live))
            live[position], live[-1] = live[-1], live[position]
            yield free(live.pop())


def main() -> None:
    """Print a line per stream and mode."""
    for name, stream in (("regrowing cache", regrowing_cache()), ("steps", steps()), ("random sizes", random_sizes())):
        events = list(stream)
        for expandable in (False, True):
            begin = time.perf_counter()
            result = replay(events, expandable=expandable)
            seconds = time.perf_counter() - begin
            begin = time.perf_counter()
            replay_on(CachingAllocator(expandable=expandable, recorder=Recorder()), events)
            recorded_seconds = time.perf_counter() - begin
            print(
                f"{name:16s} {'expandable' if expandable else 'default':10s} {len(events):8,d} events  "
                f"{len(events) / seconds / 1e3:6,.0f} k/s  with history {len(events) / recorded_seconds / 1e3:6,.0f} k/s  "
                f"reserved {result.peak_reserved_bytes / MIB:10,.0f} MiB"
            )


if __name__ == "__main__":
    main()
