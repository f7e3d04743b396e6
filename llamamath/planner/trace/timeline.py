"""The run as a picture: allocated bytes by component over the events, the peak marked. Self-contained HTML, no external resources."""

from __future__ import annotations

import html
import json
from array import array

from llamamath.planner.architecture import Architecture
from llamamath.planner.estimate import COMPONENTS
from llamamath.planner.job import Job
from llamamath.planner.trace.accounting import UNCOUNTED, live_tensors
from llamamath.planner.trace.result import TraceResult
from llamamath.planner.trace.stream import Stream, rounded
from llamamath.units import format_bytes

COLUMNS = 1200
"""Points along the horizontal axis: each shows the worst instant of its stretch of events."""
WIDTH, HEIGHT = 1200, 420
COLOURS = dict(zip(COMPONENTS, ("#4e79a7", "#59a14f", "#9c755f", "#e15759", "#f28e2b", "#edc948", "#76b7b2", "#bab0ac"), strict=True))
"""Tableau's ten: told apart by people with any colour vision."""
_TOP_TENSORS = 15
Column = tuple[int, int, tuple[int, ...]]


def columns_of(stream: Stream, count: int = COLUMNS) -> list[Column]:
    """(entry, total bytes, bytes by component) at the worst instant of each of at most `count` equal stretches of the step."""
    component_of = [COMPONENTS.index(label.component) for label in stream.labels]
    first = next((mark.position for mark in stream.marks if mark.phase == "between"), 0)
    step = max(1, -(-(len(stream.entries) - first) // count))
    alive, sizes = [0] * len(COMPONENTS), array("q")
    columns: list[Column] = []
    best: Column | None = None
    for position, entry in enumerate(stream.entries):
        if entry > 0:
            sizes.append(rounded(entry))
            alive[component_of[stream.label_of[len(sizes) - 1]]] += sizes[-1]
        else:
            alive[component_of[stream.label_of[-entry - 1]]] -= sizes[-entry - 1]
        if position < first:
            continue
        total = sum(alive)
        if best is None or total > best[1]:
            best = (position, total, tuple(alive))
        if (position - first) % step == step - 1:
            columns.append(best)
            best = None
    if best is not None:
        columns.append(best)
    return columns


def timeline_html(result: TraceResult, job: Job, architecture: Architecture) -> str:
    """The whole page."""
    stream, peak = result.stream, result.peak
    columns = columns_of(stream)
    top = max([total for _, total, _ in columns] + [1]) * 1.04
    title = f"{architecture.name}: {job.method}, peak {format_bytes(result.allocated_bytes)} in {peak.phase}"
    parts = _areas(columns, top) + _phases(stream, columns) + _peak(columns, top, peak.position) + _axis(top)
    data = [[total, *sizes] for _, total, sizes in columns]
    return _PAGE.format(
        title=html.escape(title),
        width=WIDTH,
        height=HEIGHT,
        svg="\n".join(parts),
        legend="".join(f'<span><i style="background:{COLOURS[name]}"></i>{name.replace("_", " ")}</span>' for name in COMPONENTS),
        tensors=_tensors(result),
        unseen="".join(
            f"<li>{html.escape(part.name)}: {format_bytes(part.bytes)} ({html.escape(part.source)})</li>" for part in result.unseen
        ),
        versions=html.escape(", ".join(f"{name} {version}" for name, version in result.versions.items())),
        data=json.dumps(data),
        names=json.dumps([name.replace("_", " ") for name in COMPONENTS]),
        phases=json.dumps(_phase_of_columns(stream, columns)),
    )


def _x(index: int, count: int) -> float:
    return round(WIDTH * index / max(1, count - 1), 1)


def _areas(columns: list[Column], top: float) -> list[str]:
    """One polygon for each component, stacked in the order of COMPONENTS."""
    floor = [0] * len(columns)
    parts = []
    for index, name in enumerate(COMPONENTS):
        ceiling = [low + sizes[index] for low, (_, _, sizes) in zip(floor, columns, strict=True)]
        if ceiling != floor:
            upper = [f"{_x(i, len(columns))},{HEIGHT - HEIGHT * value / top:.1f}" for i, value in enumerate(ceiling)]
            lower = [f"{_x(i, len(columns))},{HEIGHT - HEIGHT * value / top:.1f}" for i, value in enumerate(floor)]
            parts.append(f'<polygon fill="{COLOURS[name]}" points="{" ".join(upper + lower[::-1])}"/>')
        floor = ceiling
    return parts


def _phase_of_columns(stream: Stream, columns: list[Column]) -> list[str]:
    stretches = list(stream.phases())
    names, index = [], 0
    for position, _, _ in columns:
        while index + 1 < len(stretches) and stretches[index][1] <= position:
            index += 1
        mark = stretches[index][2]
        names.append(f"{mark.phase} {mark.detail}".strip())
    return names


def _phases(stream: Stream, columns: list[Column]) -> list[str]:
    """A line and a name where a phase begins."""
    names = _phase_of_columns(stream, columns)
    parts: list[str] = []
    last = ""
    for index, name in enumerate(names):
        phase = name.partition(" ")[0]
        if phase != last and phase not in UNCOUNTED:
            x = _x(index, len(columns))
            parts.append(f'<line x1="{x}" x2="{x}" y1="0" y2="{HEIGHT}" stroke="#888" stroke-dasharray="3 3"/>')
            parts.append(f'<text x="{x + 3}" y="12" class="phase">{html.escape(phase)}</text>')
        last = phase
    return parts


def _peak(columns: list[Column], top: float, position: int) -> list[str]:
    index = max(range(len(columns)), key=lambda i: columns[i][1], default=0)
    if not columns:
        return []
    x, y = _x(index, len(columns)), HEIGHT - HEIGHT * columns[index][1] / top
    anchor = "end" if x > WIDTH * 0.7 else "start"
    text = f"peak {format_bytes(columns[index][1])}"
    return [
        f'<circle id="peak" cx="{x}" cy="{y:.1f}" r="5" fill="none" stroke="#000" stroke-width="2" data-entry="{position}"/>',
        f'<text x="{x + (-9 if anchor == "end" else 9)}" y="{y + 22:.1f}" text-anchor="{anchor}" class="peak">{text}</text>',
    ]


def _axis(top: float) -> list[str]:
    parts = []
    for fraction in (0.25, 0.5, 0.75):
        y = HEIGHT - HEIGHT * fraction
        parts.append(f'<line x1="0" x2="{WIDTH}" y1="{y}" y2="{y}" stroke="#0002"/>')
        parts.append(f'<text x="{WIDTH - 4}" y="{y - 3}" text-anchor="end" class="axis">{format_bytes(top * fraction)}</text>')
    return parts


def _tensors(result: TraceResult) -> str:
    """Rows of the largest groups of tensors alive at the peak."""
    groups: dict[tuple[str, str], list[int]] = {}
    for identity, size in live_tensors(result.stream, result.peak.position):
        label = result.stream.label(identity)
        found = groups.setdefault((label.component, label.text), [0, 0])
        found[0] += 1
        found[1] += size
    largest = sorted(groups.items(), key=lambda item: -item[1][1])[:_TOP_TENSORS]
    return "".join(
        f"<tr><td>{format_bytes(size)}</td><td>{count}</td><td>{component.replace('_', ' ')}</td><td>{html.escape(text)}</td></tr>"
        for (component, text), (count, size) in largest
    )


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 14px system-ui, sans-serif; margin: 24px; max-width: 1260px; color: #222; }}
svg {{ width: 100%; height: auto; background: #fafafa; border: 1px solid #ddd; }}
.phase, .axis {{ font-size: 11px; fill: #555; }} .peak {{ font-weight: 600; }}
.legend span {{ margin-right: 14px; white-space: nowrap; }}
.legend i {{ display: inline-block; width: 12px; height: 12px; margin-right: 4px; }}
table {{ border-collapse: collapse; }} td, th {{ padding: 2px 10px 2px 0; text-align: left; font-variant-numeric: tabular-nums; }}
#at {{ min-height: 1.4em; font-variant-numeric: tabular-nums; }}
</style></head><body>
<h1 style="font-size:20px">{title}</h1>
<p class="legend">{legend}</p>
<svg viewBox="0 0 {width} {height}" role="img" aria-label="{title}">
{svg}
<line id="cursor" y1="0" y2="{height}" stroke="#000" visibility="hidden"/>
</svg>
<p id="at">Move over the picture for the figures of an instant.</p>
<p>Each point along the axis is the worst instant of an equal number of allocations and releases, from the first rollout or forward to the
end of the step. Sizes are rounded to 512 bytes as the allocator does.</p>
<h2 style="font-size:16px">Alive at the peak</h2>
<table><tr><th>bytes</th><th>tensors</th><th>component</th><th>what</th></tr>{tensors}</table>
<h2 style="font-size:16px">Not seen by the trace</h2><ul>{unseen}</ul>
<p>Traced with {versions}.</p>
<script>
const data = {data}, names = {names}, phases = {phases};
const svg = document.querySelector("svg"), cursor = document.getElementById("cursor"), at = document.getElementById("at");
const show = b => b >= 2**30 ? (b / 2**30).toFixed(2) + " GiB" : (b / 2**20).toFixed(0) + " MiB";
svg.addEventListener("mousemove", e => {{
  const box = svg.getBoundingClientRect(), f = (e.clientX - box.left) / box.width;
  const i = Math.max(0, Math.min(data.length - 1, Math.round(f * (data.length - 1))));
  const x = {width} * i / Math.max(1, data.length - 1);
  cursor.setAttribute("x1", x); cursor.setAttribute("x2", x); cursor.setAttribute("visibility", "visible");
  const parts = data[i].slice(1).map((b, k) => b ? names[k] + " " + show(b) : "").filter(Boolean);
  at.textContent = phases[i] + ": " + show(data[i][0]) + " = " + parts.join(" + ");
}});
</script>
</body></html>
"""
