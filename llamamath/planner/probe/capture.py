"""Raw capture of this machine: what NVML, the system and the environment say, as one JSON-able document. Never raises.

Each query is guarded by itself; a failure stands under `errors` beside the field that it leaves None. No judgement here: `parse.py` reads
the document, and does not care whether it was captured now or comes from somebody's report.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from llamamath.planner.probe.guard import ask, describe
from llamamath.planner.probe.host import capture_cgroup, capture_cpu, capture_disk, capture_environment, capture_memory, capture_system
from llamamath.planner.probe.nvml import NOT_FOUND, Nvml, ProcessInfo, load_nvml

SCHEMA_VERSION = 1

MAX_GPUS = 256
MAX_MIG_INSTANCES = 16
"""More than any machine has; a broken driver may answer anything, and each one is asked 20 questions."""


def capture_machine(
    *, load: Callable[[], Nvml] = load_nvml, root: Path = Path("/"), environ: Mapping[str, str] | None = None
) -> dict[str, object]:
    """Everything the probe asks, in one document. `load`, `root` and `environ` stand in for the real ones in tests.

    Holds GPU UUIDs; `redact.redact` takes out what a report must not carry.
    """
    environ = os.environ if environ is None else environ
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": "llamamath-probe",
        "system": capture_system(root, environ),
        "environment": capture_environment(environ),
        "nvml": capture_nvml(load),
        "memory": capture_memory(root),
        "cgroup": capture_cgroup(root),
        "cpu": capture_cpu(),
        "disk": capture_disk(environ),
    }


def capture_nvml(load: Callable[[], Nvml]) -> dict[str, object]:
    """Driver and GPUs. `error` is set if NVML could not be loaded or started at all; then there are no GPUs to tell of."""
    errors: dict[str, object] = {}
    gpus: list[dict[str, object]] = []
    section: dict[str, object] = {"error": None, "driver_version": None, "nvml_version": None, "cuda_driver_version": None}
    section.update(device_count=None, gpus=gpus, errors=errors)
    try:
        nvml = load()
        nvml.nvmlInit()
    except Exception as error:
        section["error"] = describe(error)
        return section
    try:
        section["driver_version"] = ask(errors, "driver_version", lambda: _text(nvml.nvmlSystemGetDriverVersion()))
        section["nvml_version"] = ask(errors, "nvml_version", lambda: _text(nvml.nvmlSystemGetNVMLVersion()))
        section["cuda_driver_version"] = ask(errors, "cuda_driver_version", lambda: int(nvml.nvmlSystemGetCudaDriverVersion()))
        count = ask(errors, "device_count", lambda: int(nvml.nvmlDeviceGetCount()))
        section["device_count"] = count
        gpus.extend(_capture_gpu(nvml, index) for index in range(min(count or 0, MAX_GPUS)))
    finally:
        ask(errors, "shutdown", lambda: nvml.nvmlShutdown())
    return section


def _capture_gpu(nvml: Nvml, index: int) -> dict[str, object]:
    errors: dict[str, object] = {}
    gpu: dict[str, object] = {"index": index, "errors": errors}
    handle = ask(errors, "handle", lambda: nvml.nvmlDeviceGetHandleByIndex(index))
    if handle is None:
        return gpu
    gpu["name"] = ask(errors, "name", lambda: _text(nvml.nvmlDeviceGetName(handle)))
    gpu["uuid"] = ask(errors, "uuid", lambda: _text(nvml.nvmlDeviceGetUUID(handle)))
    gpu["memory"] = ask(errors, "memory", lambda: _memory(nvml, handle))
    gpu["memory_reserved_bytes"] = ask(errors, "memory_reserved_bytes", lambda: _reserved_bytes(nvml, handle))
    gpu["compute_capability"] = ask(errors, "compute_capability", lambda: _pair(nvml.nvmlDeviceGetCudaComputeCapability(handle)))
    gpu["pcie_generation"] = ask(errors, "pcie_generation", lambda: int(nvml.nvmlDeviceGetCurrPcieLinkGeneration(handle)))
    gpu["pcie_width"] = ask(errors, "pcie_width", lambda: int(nvml.nvmlDeviceGetCurrPcieLinkWidth(handle)))
    gpu["pcie_generation_max"] = ask(errors, "pcie_generation_max", lambda: int(nvml.nvmlDeviceGetMaxPcieLinkGeneration(handle)))
    gpu["pcie_width_max"] = ask(errors, "pcie_width_max", lambda: int(nvml.nvmlDeviceGetMaxPcieLinkWidth(handle)))
    gpu["display_active"] = ask(errors, "display_active", lambda: int(nvml.nvmlDeviceGetDisplayActive(handle)))
    gpu["display_mode"] = ask(errors, "display_mode", lambda: int(nvml.nvmlDeviceGetDisplayMode(handle)))
    gpu["driver_model"] = ask(errors, "driver_model", lambda: int(nvml.nvmlDeviceGetCurrentDriverModel(handle)))
    gpu["power_limit_milliwatts"] = ask(errors, "power_limit_milliwatts", lambda: int(nvml.nvmlDeviceGetPowerManagementLimit(handle)))
    gpu["bar1_total_bytes"] = ask(errors, "bar1_total_bytes", lambda: int(nvml.nvmlDeviceGetBAR1MemoryInfo(handle).bar1Total))
    gpu["ecc_mode"] = ask(errors, "ecc_mode", lambda: _pair(nvml.nvmlDeviceGetEccMode(handle)))
    gpu["processes"] = _processes(nvml, handle, errors)
    mig_mode = ask(errors, "mig_mode", lambda: _pair(nvml.nvmlDeviceGetMigMode(handle)))
    gpu["mig_mode"] = mig_mode
    gpu["mig_instances"] = _mig_instances(nvml, handle, errors) if mig_mode and mig_mode[0] == 1 else []
    return gpu


def _processes(nvml: Nvml, handle: object, errors: dict[str, object]) -> list[dict[str, object]] | None:
    """Who holds memory, each process once: `own` or not, and its bytes where the driver tells. None if neither list may be read."""
    compute = ask(errors, "compute_processes", lambda: _process_rows("compute", nvml.nvmlDeviceGetComputeRunningProcesses(handle)))
    graphics = ask(errors, "graphics_processes", lambda: _process_rows("graphics", nvml.nvmlDeviceGetGraphicsRunningProcesses(handle)))
    if compute is None and graphics is None:
        return None
    return list({**(graphics or {}), **(compute or {})}.values())


def _process_rows(kind: str, processes: Sequence[ProcessInfo]) -> dict[int, dict[str, object]]:
    rows: dict[int, dict[str, object]] = {}
    for process in processes:
        used = process.usedGpuMemory
        rows[int(process.pid)] = {"kind": kind, "own": process.pid == os.getpid(), "used_bytes": None if used is None else int(used)}
    return rows


def _mig_instances(nvml: Nvml, handle: object, errors: dict[str, object]) -> list[dict[str, object]]:
    """The slices of a GPU in MIG mode that exist."""
    count = ask(errors, "mig_count", lambda: int(nvml.nvmlDeviceGetMaxMigDeviceCount(handle)))
    found = (_mig_instance(nvml, handle, index, errors) for index in range(min(count or 0, MAX_MIG_INSTANCES)))
    return [instance for instance in found if instance is not None]


def _mig_instance(nvml: Nvml, parent: object, index: int, parent_errors: dict[str, object]) -> dict[str, object] | None:
    """One slice, or None where there is none: an empty place answers "not found"."""
    errors: dict[str, object] = {}
    handle = ask(errors, "handle", lambda: nvml.nvmlDeviceGetMigDeviceHandleByIndex(parent, index))
    if handle is None:
        failure = errors.get("handle")
        if isinstance(failure, dict) and failure.get("code") != NOT_FOUND:
            parent_errors[f"mig_{index}"] = failure
        return None
    return {
        "index": index,
        "name": ask(errors, "name", lambda: _text(nvml.nvmlDeviceGetName(handle))),
        "uuid": ask(errors, "uuid", lambda: _text(nvml.nvmlDeviceGetUUID(handle))),
        "memory": ask(errors, "memory", lambda: _memory(nvml, handle)),
        "errors": errors,
    }


def _memory(nvml: Nvml, handle: object) -> dict[str, int]:
    info = nvml.nvmlDeviceGetMemoryInfo(handle)
    return {"total_bytes": int(info.total), "free_bytes": int(info.free), "used_bytes": int(info.used)}


def _reserved_bytes(nvml: Nvml, handle: object) -> int:
    return int(nvml.nvmlDeviceGetMemoryInfo(handle, nvml.nvmlMemory_v2).reserved)


def _pair(values: Sequence[int]) -> list[int]:
    first, second = values
    return [int(first), int(second)]


def _text(value: str | bytes) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
