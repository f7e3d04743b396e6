"""Which GPUs CUDA will show to a process: CUDA_VISIBLE_DEVICES, read as CUDA and PyTorch read it.

Sources: CUDA C++ Programming Guide, "CUDA environment variables"; `torch.cuda._parse_visible_devices` and `_transform_uuid_to_ordinals`
(torch 2.13), which follow the driver; NVIDIA Multi-Instance GPU User Guide, "Device enumeration".
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuIds:
    """What selects a GPU: its place in the list, its UUID, or the UUIDs of its MIG instances (None if it is not in MIG mode)."""

    uuid: str | None
    mig_uuids: tuple[str | None, ...] | None = None


@dataclass(frozen=True, slots=True)
class Selected:
    """One device that CUDA will show: position of the GPU, and of its MIG instance if it is split."""

    gpu: int
    instance: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Visibility:
    """The devices in CUDA's order, and what there is to say about them."""

    devices: tuple[Selected, ...]
    remark: str | None = None


def visible_devices(value: str | None, gpus: Sequence[GpuIds]) -> Visibility:
    """What `CUDA_VISIBLE_DEVICES=value` leaves visible; None is "not set".

    The list is of numbers, of GPU UUIDs or of MIG UUIDs; the first entry decides. An entry of another kind, out of range, negative, or not
    the unique beginning of a UUID ends the list. One that comes twice empties it. "" means none. A GPU in MIG mode shows its first instance
    unless a MIG UUID names another.
    """
    if value is None:
        every = tuple(device for position in range(len(gpus)) if (device := _whole_or_first(position, gpus)))
        return Visibility(devices=every)
    devices: list[Selected] = []
    entries = [entry.strip() for entry in value.split(",")]
    ended = False
    for entry in entries:
        device = _select(entry, gpus) if _kind(entry) == _kind(entries[0]) else None
        if device is None:
            ended = True
            break
        if device in devices:
            return Visibility(devices=(), remark=f"CUDA_VISIBLE_DEVICES={value} names a GPU twice, which hides all of them")
        devices.append(device)
    return Visibility(devices=tuple(devices), remark=_remark(value, len(devices), ended, len(gpus)))


def _kind(entry: str) -> str:
    return entry[:4] if entry.startswith(("GPU-", "MIG-")) else ""


def _whole_or_first(position: int, gpus: Sequence[GpuIds]) -> Selected | None:
    instances = gpus[position].mig_uuids
    if instances is None:
        return Selected(position)
    return Selected(position, 0) if instances else None


def _select(entry: str, gpus: Sequence[GpuIds]) -> Selected | None:
    if entry.startswith("GPU-"):
        meant = [position for position, gpu in enumerate(gpus) if gpu.uuid and gpu.uuid.startswith(entry)]
        return _whole_or_first(meant[0], gpus) if len(meant) == 1 else None
    if entry.startswith("MIG-"):
        slices = [
            Selected(position, instance)
            for position, gpu in enumerate(gpus)
            for instance, uuid in enumerate(gpu.mig_uuids or ())
            if uuid and uuid.startswith(entry)
        ]
        return slices[0] if len(slices) == 1 else None
    number = re.match(r"\+?[0-9]{1,9}", entry)  # as strtoul: what follows the number is ignored
    if number is None or int(number.group()) >= len(gpus):
        return None
    return _whole_or_first(int(number.group()), gpus)


def _remark(value: str, num_visible: int, ended: bool, num_gpus: int) -> str | None:
    if num_visible == 0:
        return f"CUDA_VISIBLE_DEVICES={value!r} hides every GPU"
    if ended:
        return f"CUDA_VISIBLE_DEVICES={value}: CUDA stops at the entry that names no GPU here; {num_visible} of {num_gpus} visible"
    return f"CUDA_VISIBLE_DEVICES={value}: {num_visible} of {num_gpus} GPUs visible" if num_visible < num_gpus else None
