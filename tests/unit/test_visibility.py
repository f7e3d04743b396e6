"""CUDA_VISIBLE_DEVICES, as CUDA reads it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamamath.planner.probe.visibility import GpuIds, Selected, visible_devices

TWO = [GpuIds(uuid="GPU-aaaa1"), GpuIds(uuid="GPU-aaaa2")]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, [0, 1]),
        ("", []),
        ("-1", []),
        ("0,-1,1", [0]),
        ("1", [1]),
        (" 1 , 0 ", [1, 0]),
        ("0,2,1", [0]),
        ("2,0", []),
        ("0,0", []),
        ("1gpu", [1]),
        ("+1", [1]),
        ("nonsense", []),
        ("99999999999999", []),
        ("GPU-aaaa2", [1]),
        ("GPU-aaaa", []),
        ("GPU-aaaa1,GPU-b", [0]),
        ("GPU-aaaa1,1", [0]),
        ("0,GPU-aaaa2", [0]),
        ("NoDevFiles", []),
    ],
)
def test_cuda_visible_devices(value: str | None, shown: list[int]) -> None:
    """As torch 2.13's `_parse_visible_devices` and `_transform_uuid_to_ordinals` answer for two GPUs."""
    found = visible_devices(value, TWO)
    assert [device.gpu for device in found.devices] == shown
    assert (found.remark is None) == (len(shown) == 2)


def test_mig_instances_are_shown_one_by_one() -> None:
    gpus = [GpuIds(uuid="GPU-a", mig_uuids=("MIG-x1", "MIG-y1")), GpuIds(uuid="GPU-b", mig_uuids=()), GpuIds(uuid="GPU-c")]
    assert visible_devices(None, gpus).devices == (Selected(0, 0), Selected(2))
    assert visible_devices("MIG-y", gpus).devices == (Selected(0, 1),)
    assert visible_devices("GPU-a", gpus).devices == visible_devices("0", gpus).devices == (Selected(0, 0),)
    assert visible_devices("1", gpus).devices == ()


@given(st.text(alphabet="01239,-+ GPU-MIabx", max_size=12), st.integers(0, 3))
def test_visible_devices_exist_and_come_once(value: str, count: int) -> None:
    shown = visible_devices(value, [GpuIds(uuid=f"GPU-{position}") for position in range(count)]).devices
    assert len(set(shown)) == len(shown) and all(device.gpu < count for device in shown)
