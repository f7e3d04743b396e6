"""From what somebody asks for (`auto`, `cuda:1`, `cpu`, `rtx3080ti`, `12GiB`) to the Device that a job is judged against."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from llamamath.errors import FieldError, UnavailableError, UnknownNameError, UsageError
from llamamath.planner.device import Device
from llamamath.planner.probe.findings import WSL_SPILLS, explain_nvml, find, find_on_gpu, title_of
from llamamath.planner.probe.parse import ProbedGpu, ProbedMachine, parse_capture
from llamamath.units import format_bytes, looks_like_bytes, parse_bytes

if TYPE_CHECKING:
    from llamamath.profiles.gpus import Gpu

_PROBED = re.compile(r"(?:auto|cuda|gpu)(?::([0-9]{1,4}))?")


def probe_machine() -> ProbedMachine:
    """Ask this machine now. Never raises; what could not be learnt is None."""
    from llamamath.planner.probe.capture import capture_machine

    return parse_capture(capture_machine())


def device_for(
    spec: str, *, use_total: bool = False, vram_limit_bytes: int | None = None, machine: ProbedMachine | None = None
) -> tuple[Device, tuple[str, ...]]:
    """The device that `spec` names, and what was looked at to find it, one line each.

    `auto`: the visible GPU with the most free memory; without a GPU, this machine's processor and RAM. `auto:1`, `cuda:1`: the visible GPU
    of that number. `cpu`. A GPU's name: its profile, whatever is in this machine. `12GiB`: a card of that much usable memory and unknown
    rates.

    A probed GPU is judged against its free memory, or against all of it with `use_total`; `vram_limit_bytes` lowers the limit of any
    device. `machine` is probed only if `spec` needs it. Raises FieldError or UnknownNameError for a spec that means nothing,
    UnavailableError if a GPU is asked for by number and there is none, UsageError for a number that is not there.
    """
    text = spec.strip()
    if vram_limit_bytes is not None and vram_limit_bytes <= 0:
        raise FieldError("vram limit", vram_limit_bytes, "more than 0 bytes")
    probed = _PROBED.fullmatch(text.casefold())
    if probed or text.casefold() == "cpu":
        machine = probe_machine() if machine is None else machine
        if probed:
            device, looked_at = _probed(machine, int(probed.group(1)) if probed.group(1) else None, use_total)
        else:
            device, looked_at = _processor(machine, ("asked for the CPU",))
    elif looks_like_bytes(text):
        device, looked_at = _of_size(parse_bytes(text, "GPU")), ()
    else:
        device, looked_at = _of_name(text)
    return _limited(device, vram_limit_bytes), looked_at


def _probed(machine: ProbedMachine, number: int | None, use_total: bool) -> tuple[Device, tuple[str, ...]]:
    looked_at = list(_looked_at(machine))
    usable = [gpu for gpu in machine.visible if gpu.usable]
    if number is not None:
        return _by_number(machine, number, use_total, looked_at)
    if not usable:
        return _processor(machine, (*looked_at, "no usable NVIDIA GPU, so the CPU and RAM"))
    chosen = max(usable, key=lambda gpu: (_usable(gpu, _profile_of(gpu)[0], use_total)[0], -gpu.index))
    if len(usable) > 1:
        looked_at.append(f"{title_of(chosen)} has the most {'' if use_total else 'free '}memory of {len(usable)} visible GPUs")
    return _device_of(chosen, machine, use_total), tuple(looked_at)


def _by_number(machine: ProbedMachine, number: int, use_total: bool, looked_at: Sequence[str]) -> tuple[Device, tuple[str, ...]]:
    if not machine.visible:
        seen = "; ".join(looked_at)
        raise UnavailableError(f"GPU {number} was asked for, but no NVIDIA GPU is visible: {seen}", "`llamamath doctor` tells more")
    if number >= len(machine.visible):
        there = ", ".join(f"{position}: {gpu.name or 'name unknown'}" for position, gpu in enumerate(machine.visible))
        raise UsageError(f"there is no GPU {number}; visible: {there}", "numbers count the GPUs that CUDA_VISIBLE_DEVICES leaves visible")
    gpu = machine.visible[number]
    if not gpu.usable:
        broken = "; ".join(finding.line for finding in find_on_gpu(gpu))
        raise UnavailableError(f"GPU {number} cannot be used: {broken}", "`llamamath doctor` tells more")
    return _device_of(gpu, machine, use_total), tuple(looked_at)


def _looked_at(machine: ProbedMachine) -> list[str]:
    """What the search saw: the driver, the GPUs, and what keeps any of them from being used."""
    failed = explain_nvml(machine)
    if failed:
        return [failed.line]
    version = f"NVIDIA driver {machine.driver_version or 'of unknown version'}"
    lines = [f"{version}: {', '.join(title_of(gpu) for gpu in machine.gpus) or 'no GPU'}"]
    if machine.visibility_remark:
        lines.append(machine.visibility_remark)
    problems = (finding for finding in find(machine) if finding.severity == "problem")
    return lines + [finding.line for finding in problems if finding.what != machine.visibility_remark]


def _usable(gpu: ProbedGpu, profile: Gpu | None, use_total: bool) -> tuple[int, str]:
    """Bytes that a process may use, and how that is known."""
    if gpu.free_bytes is not None and not use_total:
        return gpu.free_bytes, "free now"
    excuse = "" if use_total else "; the driver does not say what is free"
    total_bytes = gpu.total_bytes or 0
    if gpu.reserved_bytes is not None:
        return max(0, total_bytes - gpu.reserved_bytes), f"all of its memory less what the driver holds back{excuse}"
    if profile is not None:
        return min(total_bytes, profile.usable_bytes), f"all of its memory: {profile.usable_basis}{excuse}"
    return total_bytes, f"all of its memory, what the driver holds back unknown{excuse}"


def _profile_of(gpu: ProbedGpu) -> tuple[Gpu | None, str]:
    from llamamath.profiles.gpu_names import match_nvml

    if gpu.mig_instance is not None:
        return None, "a MIG instance has an unknown share of the card's rates"
    return match_nvml(gpu.name or "", gpu.total_bytes)


def _device_of(gpu: ProbedGpu, machine: ProbedMachine, use_total: bool) -> Device:
    from llamamath.profiles.gpus import pcie_copy_bytes_per_second

    profile, reason = _profile_of(gpu)
    limit_bytes, limit_basis = _usable(gpu, profile, use_total)
    notes = [finding.line for finding in find_on_gpu(gpu)]
    if machine.wsl and gpu.driver_model != "WDDM":
        notes.append(WSL_SPILLS.line)
    link_rate = pcie_copy_bytes_per_second(gpu.pcie_generation, gpu.pcie_lanes)
    if link_rate is not None:
        notes.append(f"host to device: derived, 0.8 of PCIe {gpu.pcie_generation}.0 x{gpu.pcie_lanes}")
    notes.append(f"rates: those of {profile.name}, {reason}" if profile else reason)
    return Device(
        name=gpu.name or f"GPU {gpu.index}",
        kind="cuda",
        total_bytes=gpu.total_bytes or 0,
        limit_bytes=limit_bytes,
        limit_basis=limit_basis,
        compute_capability=gpu.compute_capability or (profile.compute_capability if profile else None),
        memory_bandwidth_bytes_per_second=profile.memory_bandwidth_bytes_per_second if profile else None,
        bf16_flops_per_second=profile.tensor_flops_per_second if profile else None,
        host_to_device_bytes_per_second=link_rate,
        host_memory_bytes=machine.usable_memory_bytes,
        disk_free_bytes=machine.disk_free_bytes,
        notes=tuple(notes),
    )


def _processor(machine: ProbedMachine, looked_at: tuple[str, ...]) -> tuple[Device, tuple[str, ...]]:
    """This machine's RAM as the device. Rates are unknown: they depend on what torch finds in the processor."""
    usable_bytes = machine.usable_memory_bytes
    if usable_bytes is None:
        raise UnavailableError("neither a GPU nor the size of RAM could be found", "name a GPU or a size instead, such as 12GiB")
    whole_bytes = machine.whole_memory_bytes or usable_bytes
    bounded = any(limit.free_bytes == usable_bytes for limit in machine.memory_limits)
    count = machine.num_cpus if machine.cpu_quota is None else min(machine.cpu_quota, machine.num_cpus or machine.cpu_quota)
    usable_bytes = min(usable_bytes, whole_bytes)
    device = Device(
        name="CPU" if count is None else f"CPU ({count:g} core{'' if count == 1 else 's'})",
        kind="cpu",
        total_bytes=whole_bytes,
        limit_bytes=usable_bytes,
        limit_basis="RAM left by the control group's limit" if bounded else "RAM available now",
        host_memory_bytes=usable_bytes,
        disk_free_bytes=machine.disk_free_bytes,
    )
    return device, (*looked_at, f"RAM: {format_bytes(usable_bytes)} of {format_bytes(whole_bytes)} available")


def _of_size(size_bytes: int) -> Device:
    return Device(
        name=f"GPU with {format_bytes(size_bytes)}",
        kind="cuda",
        total_bytes=size_bytes,
        limit_bytes=size_bytes,
        limit_basis="the size given, taken as usable",
        notes=("an unnamed card: rates, price and compute capability unknown",),
    )


def _of_name(name: str) -> tuple[Device, tuple[str, ...]]:
    from llamamath.profiles.gpu_names import look_up_gpu

    try:
        gpu, remarks = look_up_gpu(name)
    except UnknownNameError as error:
        more = "`auto`, `cuda:0` and `cpu` stand for what this machine has"
        raise UnknownNameError("GPU", name, error.closest, f"{error.hint}; {more}") from error
    notes = list(remarks)
    if gpu.unverified:
        notes.append(f"not looked up: {', '.join(gpu.unverified)}")
    if gpu.notes:
        notes.append(gpu.notes)
    device = Device(
        name=gpu.name,
        kind="cuda",
        total_bytes=gpu.usable_bytes if gpu.total_bytes is None else gpu.total_bytes,
        limit_bytes=gpu.usable_bytes,
        limit_basis=f"usable on an idle card: {gpu.usable_basis}",
        compute_capability=gpu.compute_capability,
        memory_bandwidth_bytes_per_second=gpu.memory_bandwidth_bytes_per_second,
        bf16_flops_per_second=gpu.tensor_flops_per_second,
        host_to_device_bytes_per_second=gpu.host_to_device_bytes_per_second,
        price_usd_per_hour_low=gpu.price_usd_per_hour_low,
        price_usd_per_hour_high=gpu.price_usd_per_hour_high,
        notes=tuple(notes),
    )
    return device, (f"profile of {gpu.name}", *remarks)


def _limited(device: Device, limit_bytes: int | None) -> Device:
    """`device` with its limit lowered. A limit above what there is changes nothing and is noted."""
    from dataclasses import replace

    if limit_bytes is None:
        return device
    if limit_bytes > device.limit_bytes:
        there = f"{format_bytes(device.limit_bytes)} ({device.limit_basis})"
        return replace(device, notes=(*device.notes, f"the limit of {format_bytes(limit_bytes)} is above what there is: {there}"))
    basis = f"the limit given, of {format_bytes(device.limit_bytes)} ({device.limit_basis})"
    return replace(device, limit_bytes=limit_bytes, limit_basis=basis)
