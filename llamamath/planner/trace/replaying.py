"""A traced run through the model of the caching allocator: the stream as its events, with the growth of the cache in between.

A trace runs the prefill and the last tokens of a rollout. Between them `DynamicCache` copies every layer's keys and values into tensors
one token longer, at each token, which is what fragments the default allocator (facts.md section 1: 52 GiB reserved for 2.6 GiB of cache).
Those steps are put in here: for every cached tensor the longer one, then the shorter one's release.
"""

from __future__ import annotations

from collections.abc import Iterator

from llamamath.planner.allocator.events import Event, alloc, free, phase
from llamamath.planner.allocator.replay import Replay, replay
from llamamath.planner.trace.result import TraceResult
from llamamath.planner.trace.stream import Stream

MAX_GROWTH_EVENTS = 200_000
"""Above so many, only every n-th token is grown through: the sizes that matter are still passed."""
_WORKSPACE_ID = -1


def replayed(result: TraceResult, *, expandable: bool, capacity_bytes: int | None = None) -> Replay:
    """The whole run replayed. What only the allocator sees (workspaces) is there from the start."""
    unseen = [
        alloc(_WORKSPACE_ID - index, part.bytes, f"temporary/{part.name}") for index, part in enumerate(result.unseen) if part.in_allocator
    ]
    return replay(events_of(result.stream), expandable=expandable, capacity_bytes=capacity_bytes, initial=unseen)


def events_of(stream: Stream, *, growth: bool = True) -> Iterator[Event]:
    """The allocator's events of a stream; labels are `component/place`."""
    texts = [f"{label.component}/{label.where or label.operation}" for label in stream.labels]
    sizes: list[int] = []
    for start, end, mark in stream.phases():
        yield phase(mark.phase)
        if mark.phase == "fill" and growth:
            yield from _growth(stream, start, end, len(sizes))
        for position in range(start, end):
            entry = stream.entries[position]
            if entry > 0:
                sizes.append(entry)
                yield alloc(len(sizes), entry, texts[stream.label_of[len(sizes) - 1]])
            else:
                yield free(-entry)


def _growth(stream: Stream, start: int, end: int, before: int) -> Iterator[Event]:
    """The tokens between the prefill and the cache that `fill` builds at once. Sliding windows stop growing where their layer does."""
    caches: list[tuple[int, int]] = []  # (tokens, bytes)
    identity = before
    for position in range(start, end):
        if stream.entries[position] > 0:
            identity += 1
            label = stream.label(identity)
            if label.component == "kv_cache":
                caches.append((_tokens(label.shape), stream.entries[position]))
    length = max((tokens for tokens, _ in caches), default=0)
    if length < 2:
        return
    stride = max(1, 2 * len(caches) * length // MAX_GROWTH_EVENTS)
    first = max(1, _prompt(stream, start))
    fresh = -1_000_000
    held: list[int | None] = [None] * len(caches)
    for now in range(first, length, stride):
        for index, (tokens, size) in enumerate(caches):
            if held[index] is not None and now > tokens:
                continue
            fresh -= 1
            yield alloc(fresh, size * min(now, tokens) // tokens, "kv_cache/growth")
            old, held[index] = held[index], fresh
            if old is not None:
                yield free(old)
    for last in held:
        if last is not None:
            yield free(last)


def _tokens(shape: str) -> int:
    """`(rows, heads, tokens, dim) dtype` -> tokens."""
    parts = shape.partition(")")[0].strip("(").split(",")
    return int(parts[2]) if len(parts) == 4 else 1


def _prompt(stream: Stream, fill: int) -> int:
    """Tokens in the cache after the prefill: of the last cached tensor before the fill."""
    identity = sum(entry > 0 for entry in stream.entries[:fill])
    while identity > 0:
        label = stream.label(identity)
        if label.component == "kv_cache":
            return _tokens(label.shape)
        identity -= 1
    return 0
