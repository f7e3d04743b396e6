"""Bars are true to scale: never longer than their total, stacked in order, with the limit where it is."""

from __future__ import annotations

import io

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from llamamath.cli.show_memory import LABEL_CELLS, LOOKS, SIZE_CELLS, print_memory
from llamamath.planner.budget import Budget, judge
from llamamath.planner.estimate import COMPONENTS, Estimate, HostMemory, Peak, PhaseMemory
from llamamath.planner.probe.devices import device_for

SIZES = st.lists(st.integers(0, 2**38), min_size=len(COMPONENTS), max_size=len(COMPONENTS))


def drawn(sizes: list[int], limit: str, width: int, encoding: str = "utf-8") -> list[str]:
    """The lines that are printed for an estimate with one phase."""
    phase = PhaseMemory(name="backward", **{f"{name}_bytes": size for name, size in zip(COMPONENTS, sizes, strict=True)})
    total = phase.total_bytes
    peak = Peak(
        phase="backward",
        allocated_bytes=total,
        reserved_bytes=total,
        device_bytes=total + 2**29,
        low_bytes=total,
        high_bytes=total + 2**30,
    )
    estimate = Estimate(phases=(phase,), peak=peak, host=HostMemory(peak_bytes=0), trainable_parameters=1, total_parameters=1)
    device = device_for(limit)[0]
    output = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    print_memory(Console(file=output, width=width, markup=False), estimate, judge(estimate, device, Budget()), device)
    output.seek(0)
    return output.read().splitlines()


@given(sizes=SIZES, gibibytes=st.integers(1, 200), width=st.integers(20, 200))
def test_bars_stay_inside_and_in_order(sizes: list[int], gibibytes: int, width: int) -> None:
    lines = drawn(sizes, f"{gibibytes}GiB", width)
    row = next(line for line in lines if line.startswith("> backward"))
    bar = row[LABEL_CELLS + SIZE_CELLS + 1 :]
    assert len(row) <= max(width, LABEL_CELLS + SIZE_CELLS + 1)
    letters = bar.replace("│", "").replace(" ", "")
    order = [LOOKS[name][2] for name in COMPONENTS]
    assert list(letters) == sorted(letters, key=order.index)


def test_half_full_is_half_a_bar() -> None:
    lines = drawn([2**32, *[0] * 7], "8GiB", 80)
    row = next(line for line in lines if line.startswith("> backward"))
    cells = 80 - LABEL_CELLS - SIZE_CELLS - 2
    assert row.count("W") == cells // 2 and row.endswith("│")


def test_a_limit_far_below_is_drawn_inside() -> None:
    lines = drawn([2**36, *[0] * 7], "8GiB", 80)
    row = next(line for line in lines if line.startswith("> backward"))
    assert "W│W" in row and "limit 8.00 GiB" in lines[0]


def test_ascii_has_no_other_characters() -> None:
    assert all(line.isascii() for line in drawn([2**30] * 8, "8GiB", 80, "ascii"))
