"""What a probed machine means for somebody who wants to train on it: what is wrong, what to know, what to do. Words only, no decisions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from llamamath.planner.probe.parse import GONE_CODES, Failure, ProbedGpu, ProbedMachine
from llamamath.units import GIB, MIB, format_bytes

Severity = Literal["note", "warning", "problem"]

BUSY_BYTES = 512 * MIB
"""Less than this in use is a context or a small desktop: not worth a line."""

LOW_DISK_BYTES = 20 * GIB
"""An 8 B model in bf16 is 16 GB to download."""

CUDA_13_CAPABILITY = (7, 5)
"""CUDA 13.0 dropped Maxwell, Pascal and Volta; CUDA Toolkit release notes 13.0."""

_LIBRARY_NOT_FOUND = 12
_QUIET = frozenset({3, 13})
"""Not supported, function not found: the card or the driver does not have the feature; nothing is broken."""

_NVML_ADVICE: dict[int, tuple[str, str]] = {
    1: ("NVML was not started", "run it again; if it stays so, reinstall the NVIDIA driver"),
    4: (
        "no permission to ask the NVIDIA driver",
        "let this user open /dev/nvidia* (often the group `video` or `render`); in a container, start it with the GPU's device files",
    ),
    9: (
        "the NVIDIA driver is installed but its kernel module is not loaded",
        "reboot, or `sudo modprobe nvidia`; with Secure Boot, the module must be signed",
    ),
    10: ("the NVIDIA driver did not answer in time", "see whether `nvidia-smi` hangs too; a reboot is the usual cure"),
    11: ("the GPU has an interrupt problem", "see `dmesg` for lines with NVRM; reseat the card, update the BIOS"),
    14: ("the GPU's information ROM is corrupted", "see `nvidia-smi -q`; the card may need service"),
    15: (
        "the GPU fell off the bus",
        "reboot; if it happens again, see `dmesg` for NVRM and Xid lines and look at power, riser and temperature",
    ),
    16: ("the GPU needs a reset", "reboot, or `sudo nvidia-smi --gpu-reset` with no process on it"),
    17: ("the operating system blocked the request", "in a container or sandbox, give it access to /dev/nvidia*"),
    18: (
        "the NVIDIA driver's library and kernel module have different versions, as after an update",
        "reboot; in a container, restart it so that it gets the host's new library",
    ),
    999: (
        "the NVIDIA driver reports an unknown error",
        "see whether `nvidia-smi` works; after suspend, reload the module nvidia_uvm or reboot",
    ),
}
"""By NVML's return code (nvmlReturn_t; nvml.h): what it means, what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line for people. A `problem` is broken, a `warning` costs memory or speed, a `note` is good to know."""

    severity: Severity
    what: str
    fix: str = ""

    @property
    def line(self) -> str:
        return f"{self.what}: {self.fix}" if self.fix else self.what


WSL_SPILLS = Finding(
    severity="warning",
    what="WSL: GPU memory spills into RAM instead of failing, at a crawl",
    fix="stay below the limit; RAM is what .wslconfig gives",
)


def find(machine: ProbedMachine) -> tuple[Finding, ...]:
    """Everything worth saying about `machine`, drivers first."""
    return (
        *_driver(machine),
        *(finding for gpu in machine.gpus for finding in find_on_gpu(gpu)),
        *_selection(machine),
        *_host(machine),
    )


def explain_nvml(machine: ProbedMachine) -> Finding | None:
    """Why NVML gave no GPUs, or None if it did not fail."""
    failure = machine.nvml_failure
    if failure is None:
        return None
    if failure.type in ("ModuleNotFoundError", "ImportError"):
        what = f"NVIDIA's library for Python cannot be loaded ({failure.message})"
        return Finding(severity="problem", what=what, fix="pip install nvidia-ml-py")
    if failure.code == _LIBRARY_NOT_FOUND:
        return _no_library(machine)
    return _explain(failure)


def _no_library(machine: ProbedMachine) -> Finding:
    if machine.num_nvidia_pci_cards:
        return Finding(severity="problem", what="an NVIDIA card is there but no NVIDIA driver", fix="install the driver, then reboot")
    if machine.wsl:
        fix = "install the NVIDIA driver on the Windows side, none inside; then `wsl --update`"
        return Finding(severity="note", what="WSL shows no NVIDIA driver", fix=fix)
    if machine.container:
        fix = "to use the host's GPU, start it with `--gpus all` (NVIDIA Container Toolkit)"
        return Finding(severity="note", what="no NVIDIA driver in this container", fix=fix)
    return Finding(severity="note", what="no NVIDIA driver on this machine")


def _explain(failure: Failure) -> Finding:
    unknown = (f"the NVIDIA driver failed ({failure.type}: {failure.message})", "see whether `nvidia-smi` works")
    what, fix = _NVML_ADVICE.get(failure.code or 0, unknown)
    return Finding(severity="problem", what=what, fix=fix)


def _driver(machine: ProbedMachine) -> Iterator[Finding]:
    failed = explain_nvml(machine)
    if failed:
        yield failed
        return
    for failure in machine.nvml_failures:
        if failure.code not in _QUIET:
            explained = _explain(failure)
            yield Finding(severity="problem", what=f"{failure.field.replace('_', ' ')}: {explained.what}", fix=explained.fix)
    if not machine.gpus and not machine.nvml_failures:
        missing = bool(machine.num_nvidia_pci_cards)
        fix = "see `dmesg` for NVRM lines; the card may be too old for this driver" if missing else ""
        yield Finding(severity="problem" if missing else "note", what="the NVIDIA driver runs but lists no GPU", fix=fix)


def find_on_gpu(gpu: ProbedGpu) -> Iterator[Finding]:
    """What is worth saying about one GPU."""
    title = title_of(gpu)
    failures = [failure for failure in gpu.failures if failure.code not in _QUIET]
    if not gpu.usable:
        yield _unusable(gpu, title, failures)
        return
    if gpu.compute_capability is not None and gpu.compute_capability < CUDA_13_CAPABILITY:
        what = f"{title}: compute capability {gpu.compute_capability[0]}.{gpu.compute_capability[1]}"
        yield Finding(severity="warning", what=what, fix="builds of torch for CUDA 13 need 7.5; take one for CUDA 12")
    if gpu.free_bytes is not None and gpu.total_bytes is not None:
        yield from _occupation(gpu, title, gpu.total_bytes - gpu.free_bytes - (gpu.reserved_bytes or 0))
    if gpu.display:
        yield Finding(severity="note", what=f"{title}: a display runs on it, so its free memory moves", fix="leave some headroom")
    if gpu.driver_model == "WDDM":
        what = f"{title}: Windows lets GPU memory spill into RAM instead of failing, at a crawl"
        yield Finding(severity="warning", what=what, fix="stay below the limit")
    if gpu.pcie_lanes and gpu.pcie_lanes_max and gpu.pcie_lanes < gpu.pcie_lanes_max:
        slow = f"{title}: the link has {gpu.pcie_lanes} of {gpu.pcie_lanes_max} lanes, which slows offloading"
        yield Finding(severity="note", what=slow)


def _unusable(gpu: ProbedGpu, title: str, failures: Sequence[Failure]) -> Finding:
    if failures:
        explained = _explain(next((failure for failure in failures if failure.code in GONE_CODES), failures[0]))
        return Finding(severity="problem", what=f"{title}: {explained.what}", fix=explained.fix)
    if gpu.mig_mode:
        what = f"{title}: in MIG mode without an instance"
        return Finding(severity="problem", what=what, fix="create one with `nvidia-smi mig -cgi ... -C`")
    what = f"{title}: the driver tells no size of its memory, as where GPU and processor share RAM"
    return Finding(severity="problem", what=what, fix="give the size instead, such as 100GiB")


def _occupation(gpu: ProbedGpu, title: str, used_bytes: int) -> Iterator[Finding]:
    if used_bytes < BUSY_BYTES:
        return
    if gpu.others_bytes is not None and gpu.others_bytes >= BUSY_BYTES:
        who = f"{format_bytes(gpu.others_bytes)} held by {gpu.num_others} other process{'' if gpu.num_others == 1 else 'es'}"
    elif gpu.num_others:
        who = f"{format_bytes(used_bytes)} in use, {gpu.num_others} other process{'' if gpu.num_others == 1 else 'es'} on it"
    else:
        who = f"{format_bytes(used_bytes)} in use"
    yield Finding(severity="warning", what=f"{title}: {who}", fix="end what is not needed (`nvidia-smi` lists it)")


def _selection(machine: ProbedMachine) -> Iterator[Finding]:
    if machine.visibility_remark:
        severity: Severity = "note" if machine.visible else "problem"
        yield Finding(severity=severity, what=machine.visibility_remark)
    names = {gpu.name for gpu in machine.visible}
    if len(names) > 1 and machine.environment.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID":
        fix = "set CUDA_DEVICE_ORDER=PCI_BUS_ID so that numbers mean the same here and in CUDA"
        yield Finding(severity="warning", what="different GPUs, and CUDA numbers the fastest first", fix=fix)


def _host(machine: ProbedMachine) -> Iterator[Finding]:
    if machine.wsl and any(gpu.driver_model != "WDDM" for gpu in machine.gpus):
        yield WSL_SPILLS
    if machine.usable_memory_bytes is None:
        yield Finding(severity="problem", what="the size of RAM could not be learnt")
    tight = [limit for limit in machine.memory_limits if limit.limit_bytes < (machine.total_memory_bytes or 0)]
    if tight:
        limit = min(tight, key=lambda limit: limit.free_bytes)
        bound = f"{format_bytes(limit.limit_bytes)}, {format_bytes(limit.free_bytes)} of it free"
        yield Finding(severity="note", what=f"a control group (container, job) limits RAM to {bound}")
    if machine.cache_disk_free_bytes is not None and machine.cache_disk_free_bytes < LOW_DISK_BYTES:
        free = format_bytes(machine.cache_disk_free_bytes)
        yield Finding(severity="warning", what=f"{free} of disk free where Hugging Face files go", fix="free some, or set HF_HOME")


def title_of(gpu: ProbedGpu) -> str:
    """`"GPU 0 (NVIDIA A100-SXM4-80GB)"`, `"GPU 0 MIG 1 (...)"`."""
    instance = "" if gpu.mig_instance is None else f" MIG {gpu.mig_instance}"
    return f"GPU {gpu.index}{instance} ({gpu.name or 'name unknown'})"
