"""From a capture to typed values. Pure: the same document gives the same machine, wherever and whenever it was captured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llamamath.errors import UsageError
from llamamath.planner.probe.visibility import GpuIds, Visibility, visible_devices

GONE_CODES = frozenset({15, 16})
"""NVML_ERROR_GPU_IS_LOST and NVML_ERROR_RESET_REQUIRED: whatever else the card said, it cannot be used; nvml.h."""

_DRIVER_MODELS = {0: "WDDM", 1: "TCC", 2: "MCDM"}
"""nvmlDriverModel_t; nvml.h."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A question that got no answer. `code` is NVML's or the system's number."""

    field: str
    type: str
    code: int | None
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbedGpu:
    """One device as CUDA would show it: a GPU, or one MIG instance of it. None: the driver did not say."""

    index: int
    """NVML's, which is the PCI bus order; of the parent for a MIG instance."""
    mig_instance: int | None = None
    mig_mode: bool = False
    name: str | None = None
    uuid: str | None = None
    total_bytes: int | None = None
    free_bytes: int | None = None
    reserved_bytes: int | None = None
    """Held back by the driver, part of `total_bytes`."""
    others_bytes: int | None = None
    """Held by other processes, as far as the driver tells; None if it does not."""
    num_others: int | None = None
    compute_capability: tuple[int, int] | None = None
    pcie_generation: int | None = None
    """The highest that card and slot can do together: the current one falls while the card idles."""
    pcie_lanes: int | None = None
    """As negotiated."""
    pcie_lanes_max: int | None = None
    display: bool | None = None
    driver_model: str | None = None
    power_limit_watts: float | None = None
    bar1_total_bytes: int | None = None
    ecc: bool | None = None
    failures: tuple[Failure, ...] = ()

    @property
    def usable(self) -> bool:
        """False for a GPU that is lost, does not answer, tells no size of memory, or is in MIG mode and has no instance."""
        return self.total_bytes is not None and not any(failure.code in GONE_CODES for failure in self.failures)


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryLimit:
    """One control group that limits this process: bytes allowed, used, and of those in file cache that the kernel gives back."""

    limit_bytes: int
    used_bytes: int
    cache_bytes: int

    @property
    def free_bytes(self) -> int:
        return max(0, self.limit_bytes - self.used_bytes + self.cache_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbedMachine:
    """What a capture says about a machine. None: not known."""

    gpus: tuple[ProbedGpu, ...]
    """All that NVML lists, MIG instances in place of their GPU."""
    visible: tuple[ProbedGpu, ...]
    """Those that CUDA will show, in its order as far as NVML's order is CUDA's."""
    visibility_remark: str | None
    nvml_failure: Failure | None
    nvml_failures: tuple[Failure, ...]
    driver_version: str | None
    cuda_version: tuple[int, int] | None
    system: str | None
    python: str | None
    wsl: bool
    container: bool
    num_nvidia_pci_cards: int | None
    environment: Mapping[str, str]
    total_memory_bytes: int | None
    available_memory_bytes: int | None
    swap_total_bytes: int | None
    memory_limits: tuple[MemoryLimit, ...]
    num_cpus: int | None
    cpu_quota: float | None
    disk_free_bytes: int | None
    cache_disk_free_bytes: int | None
    """Free where Hugging Face files go."""

    @property
    def usable_memory_bytes(self) -> int | None:
        """RAM this process may still take: what the system has available, bounded by every control group above it."""
        bounds = [limit.free_bytes for limit in self.memory_limits]
        if self.available_memory_bytes is not None:
            bounds.append(self.available_memory_bytes)
        return min(bounds, default=None)

    @property
    def whole_memory_bytes(self) -> int | None:
        """RAM of the machine, or the tightest control group's limit if that is less."""
        bounds = [limit.limit_bytes for limit in self.memory_limits]
        if self.total_memory_bytes is not None:
            bounds.append(self.total_memory_bytes)
        return min(bounds, default=None)


def parse_capture(document: Mapping[str, object]) -> ProbedMachine:
    """Read a capture of schema version 1. Fields that are absent or of another type are unknown; raises UsageError for another document."""
    if document.get("schema_version") != 1 or document.get("kind") != "llamamath-probe":
        raise UsageError("this is not a capture that this version can read", "write one with `llamamath doctor --capture FILE`")
    nvml = _section(document, "nvml")
    raw_gpus = _sections(nvml, "gpus")
    environment = {key: value for key, value in _section(_section(document, "environment"), "values").items() if isinstance(value, str)}
    ids = [_ids(raw) for raw in raw_gpus]
    visibility = visible_devices(environment.get("CUDA_VISIBLE_DEVICES"), ids) if raw_gpus else Visibility(devices=())
    units = [_units(raw) for raw in raw_gpus]
    cuda = _whole(nvml, "cuda_driver_version")
    system, memory, disk, cpu = (_section(document, name) for name in ("system", "memory", "disk", "cpu"))
    quota = _section(document, "cgroup").get("cpu_quota")
    return ProbedMachine(
        gpus=tuple(unit for gpu in units for unit in gpu),
        visible=tuple(units[device.gpu][device.instance or 0] for device in visibility.devices),
        visibility_remark=visibility.remark,
        nvml_failure=_failure("nvml", nvml.get("error")),
        nvml_failures=_failures(nvml),
        driver_version=_text(nvml, "driver_version"),
        cuda_version=None if cuda is None else (cuda // 1000, cuda % 1000 // 10),
        system=_text(system, "system"),
        python=_text(system, "python"),
        wsl=system.get("wsl") is True or system.get("dxg") is True,
        container=system.get("container") is True,
        num_nvidia_pci_cards=_whole(system, "nvidia_pci_cards"),
        environment=environment,
        total_memory_bytes=_whole(memory, "total_bytes"),
        available_memory_bytes=_whole(memory, "available_bytes"),
        swap_total_bytes=_whole(memory, "swap_total_bytes"),
        memory_limits=tuple(_memory_limits(_sections(_section(document, "cgroup"), "memory"))),
        num_cpus=_whole(cpu, "affinity") or _whole(cpu, "logical"),
        cpu_quota=float(quota) if isinstance(quota, (int, float)) and not isinstance(quota, bool) and quota > 0 else None,
        disk_free_bytes=_whole(_section(disk, "working_folder"), "free_bytes"),
        cache_disk_free_bytes=_whole(_section(disk, "hugging_face_cache"), "free_bytes"),
    )


def _ids(raw: Mapping[str, object]) -> GpuIds:
    mode = raw.get("mig_mode")
    split = isinstance(mode, list) and bool(mode) and mode[0] == 1
    instances = tuple(_text(instance, "uuid") for instance in _sections(raw, "mig_instances"))
    return GpuIds(uuid=_text(raw, "uuid"), mig_uuids=instances if split else None)


def _units(raw: Mapping[str, object]) -> tuple[ProbedGpu, ...]:
    """The GPU itself; or, in MIG mode, its instances, and one without memory if there are none."""
    if _ids(raw).mig_uuids is None:
        return (_gpu(raw, raw, None),)
    instances = _sections(raw, "mig_instances")
    if not instances:
        return (_gpu(raw, {"name": raw.get("name"), "uuid": raw.get("uuid"), "errors": raw.get("errors")}, None),)
    return tuple(_gpu(raw, instance, _whole(instance, "index")) for instance in instances)


def _gpu(card: Mapping[str, object], unit: Mapping[str, object], mig_instance: int | None) -> ProbedGpu:
    """`card` tells of the board, `unit` of the memory: the same but for MIG."""
    memory = _section(unit, "memory")
    split = unit is not card
    others = [row for row in _sections(card, "processes") if row.get("own") is not True]
    told = isinstance(card.get("processes"), list) and not split
    used = [row.get("used_bytes") for row in others]
    capability, ecc = _pair(card, "compute_capability"), _pair(card, "ecc_mode")
    power = _whole(card, "power_limit_milliwatts")
    display = _whole(card, "display_active")
    total_bytes, free_bytes = _whole(memory, "total_bytes") or None, _whole(memory, "free_bytes")
    return ProbedGpu(
        index=_whole(card, "index") or 0,
        mig_instance=mig_instance,
        mig_mode=split,
        name=_text(unit, "name") or _text(card, "name"),
        uuid=_text(unit, "uuid"),
        total_bytes=total_bytes,
        free_bytes=None if free_bytes is None or total_bytes is None else min(free_bytes, total_bytes),
        reserved_bytes=None if split else _whole(card, "memory_reserved_bytes"),
        others_bytes=sum(size for size in used if isinstance(size, int)) if told and None not in used else None,
        num_others=len(others) if told else None,
        compute_capability=capability,
        pcie_generation=_whole(card, "pcie_generation_max") or _whole(card, "pcie_generation"),
        pcie_lanes=_whole(card, "pcie_width") or _whole(card, "pcie_width_max"),
        pcie_lanes_max=_whole(card, "pcie_width_max"),
        display=None if display is None else display == 1,
        driver_model=_DRIVER_MODELS.get(_whole(card, "driver_model") or 0) if card.get("driver_model") is not None else None,
        power_limit_watts=None if power is None else power / 1000,
        bar1_total_bytes=_whole(card, "bar1_total_bytes"),
        ecc=None if ecc is None else ecc[0] == 1,
        failures=_failures(card) + (_failures(unit) if split else ()),
    )


def _memory_limits(rows: Sequence[Mapping[str, object]]) -> list[MemoryLimit]:
    limits = []
    for row in rows:
        limit_bytes, used_bytes = _whole(row, "limit_bytes"), _whole(row, "used_bytes")
        if limit_bytes and used_bytes is not None:
            cache_bytes = min(_whole(row, "inactive_file_bytes") or 0, used_bytes)
            limits.append(MemoryLimit(limit_bytes=limit_bytes, used_bytes=used_bytes, cache_bytes=cache_bytes))
    return limits


def _failures(section: Mapping[str, object]) -> tuple[Failure, ...]:
    found = (_failure(field, error) for field, error in _section(section, "errors").items())
    return tuple(failure for failure in found if failure is not None)


def _failure(field: str, error: object) -> Failure | None:
    if not isinstance(error, Mapping):
        return None
    message = _text(error, "message") or _text(error, "type") or "no answer"
    return Failure(field=field, type=_text(error, "type") or "", code=_whole(error, "code"), message=message)


def _section(parent: Mapping[str, object], key: str) -> Mapping[str, object]:
    value = parent.get(key)
    return value if isinstance(value, Mapping) else {}


def _sections(parent: Mapping[str, object], key: str) -> list[Mapping[str, object]]:
    value = parent.get(key)
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, list) else []


def _whole(section: Mapping[str, object], key: str) -> int | None:
    """A number that is not negative; -1 and the like are drivers' ways of saying no."""
    value = section.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _text(section: Mapping[str, object], key: str) -> str | None:
    value = section.get(key)
    return value if isinstance(value, str) and value else None


def _pair(section: Mapping[str, object], key: str) -> tuple[int, int] | None:
    value = section.get(key)
    if isinstance(value, list) and len(value) == 2 and all(isinstance(item, int) for item in value):
        return value[0], value[1]
    return None
