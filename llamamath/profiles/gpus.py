"""GPU profiles: `gpus.toml` as typed values, in bytes and per second.

A figure that nobody looked up is None. Sources stand in each row; `Gpu.source`, `Gpu.price_source` and `Gpu.unverified` carry them on.
Finding a profile by what people type, or by what the driver says, is in `gpu_names.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache

from llamamath.errors import UnavailableError
from llamamath.units import GIB, MIB, format_bytes

PCIE_BYTES_PER_SECOND_PER_LANE = {1: 0.25e9, 2: 0.5e9, 3: 8e9 / 8 * 128 / 130, 4: 16e9 / 8 * 128 / 130, 5: 32e9 / 8 * 128 / 130}
"""PCI Express base specification: transfers per second and lane, 8b/10b coding up to generation 2 and 128b/130b after it."""

PCIE_EFFICIENCY = 0.8
"""Share of the link that a pinned copy reaches, packet headers and flow control taken off. A rule of thumb, not measured here."""

RESERVE_CLASS_BYTES = 32 * GIB
"""Consumer cards end here; what drivers hold back on larger ones is larger."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One card, or one memory size of a card. Rates are dense peaks at the boost clock, with fp32 accumulation."""

    name: str
    """Unique; NVML's product name, with the size added where one name stands for several cards."""
    nvml_name: str
    aliases: tuple[str, ...] = ()
    laptop: bool
    nominal_gb: int
    """The size on the box; sellers mix GB and GiB."""
    total_bytes: int | None = None
    """What `nvidia-smi` calls total."""
    torch_total_bytes: int | None = None
    """The smallest capacity a CUDA process was seen to have on Linux."""
    torch_total_source: str | None = None
    driver_reserve_bytes: int
    """Taken off `total_bytes` where `torch_total_bytes` is not known: see `_driver_reserve_bytes`."""
    compute_capability: tuple[int, int] | None = None
    memory_bandwidth_bytes_per_second: float | None = None
    bf16_flops_per_second: float | None = None
    fp16_flops_per_second: float | None = None
    pcie_generation: int | None = None
    pcie_lanes: int | None = None
    measured_host_to_device_bytes_per_second: float | None = None
    price_usd_per_hour_low: float | None = None
    price_usd_per_hour_high: float | None = None
    price_source: str | None = None
    price_accessed: str | None = None
    source: str
    accessed: str
    unverified: tuple[str, ...] = ()
    notes: str | None = None

    @property
    def usable_bytes(self) -> int:
        """What a CUDA process can use on an otherwise idle card, its own context included; `usable_basis` says how it is known."""
        if self.torch_total_bytes is not None:
            return self.torch_total_bytes
        total_bytes = self.nominal_gb * GIB if self.total_bytes is None else self.total_bytes
        return total_bytes - self.driver_reserve_bytes

    @property
    def usable_basis(self) -> str:
        """Where `usable_bytes` comes from, in words."""
        if self.torch_total_bytes is not None:
            return f"smallest capacity seen by CUDA processes on this card ({self.torch_total_source})"
        whole = f"{self.nominal_gb} GB nominal" if self.total_bytes is None else f"nvidia-smi's {self.total_bytes // MIB} MiB"
        return f"{whole} less {format_bytes(self.driver_reserve_bytes)}, the most a driver was seen to hold back on such cards"

    @property
    def tensor_flops_per_second(self) -> float | None:
        """bf16, or fp16 on cards without bf16 tensor cores."""
        return self.fp16_flops_per_second if self.bf16_flops_per_second is None else self.bf16_flops_per_second

    @property
    def host_to_device_bytes_per_second(self) -> float | None:
        """Measured where somebody did; else derived from the card's link, which the slot may narrow."""
        if self.measured_host_to_device_bytes_per_second is not None:
            return self.measured_host_to_device_bytes_per_second
        return pcie_copy_bytes_per_second(self.pcie_generation, self.pcie_lanes)


def pcie_copy_bytes_per_second(generation: int | None, lanes: int | None) -> float | None:
    """Pinned copy rate in one direction = lanes x rate per lane x `PCIE_EFFICIENCY`; None if the link is not known."""
    if generation is None or lanes is None or generation not in PCIE_BYTES_PER_SECOND_PER_LANE:
        return None
    return PCIE_BYTES_PER_SECOND_PER_LANE[generation] * lanes * PCIE_EFFICIENCY


@cache
def all_gpus() -> tuple[Gpu, ...]:
    """Every profile, in the order of the file. Read once; raises UnavailableError if the installation lacks its data."""
    import tomllib
    from pathlib import Path

    path = Path(__file__).with_name("gpus.toml")
    try:
        rows = tomllib.loads(path.read_text(encoding="utf-8"))["gpu"]
    except (OSError, KeyError, tomllib.TOMLDecodeError) as error:
        raise UnavailableError(f"the GPU profiles cannot be read: {error}", "reinstall llamamath") from error
    gaps = tuple(_gaps(rows))
    return tuple(_gpu(row, gaps) for row in rows)


def _gaps(rows: Iterable[Mapping[str, object]]) -> Iterable[tuple[int, int]]:
    """(nvidia-smi's total, what torch does not see of it) in bytes, for the rows where both are known."""
    for row in rows:
        total_mib, torch_gib = _number(row, "nvidia_smi_mib"), _number(row, "torch_total_gib")
        if total_mib is not None and torch_gib is not None:
            yield round(total_mib * MIB), round(total_mib * MIB - torch_gib * GIB)


def _driver_reserve_bytes(total_bytes: int, gaps: Iterable[tuple[int, int]]) -> int:
    """The largest gap between nvidia-smi's total and torch's on any card up to 32 GiB, or up to this card's size if that is more.

    Pessimistic on purpose: older drivers hold back half of it.
    """
    return max(gap for size, gap in gaps if size <= max(total_bytes, RESERVE_CLASS_BYTES))


def _gpu(row: Mapping[str, object], gaps: tuple[tuple[int, int], ...]) -> Gpu:
    nominal_gb = _number(row, "nominal_gb")
    if nominal_gb is None:
        raise UnavailableError(f"the GPU profile {row.get('name')!r} has no size", "reinstall llamamath")
    total_mib, torch_gib = _number(row, "nvidia_smi_mib"), _number(row, "torch_total_gib")
    total_bytes = None if total_mib is None else round(total_mib * MIB)
    name = _text(row, "name") or ""
    capability = _text(row, "compute_capability")
    major, _, minor = (capability or "").partition(".")
    return Gpu(
        name=name,
        nvml_name=_text(row, "nvml_name") or name,
        aliases=_texts(row, "aliases"),
        laptop=row.get("laptop") is True,
        nominal_gb=round(nominal_gb),
        total_bytes=total_bytes,
        torch_total_bytes=None if torch_gib is None else round(torch_gib * GIB),
        torch_total_source=_text(row, "torch_total_source"),
        driver_reserve_bytes=_driver_reserve_bytes(total_bytes or round(nominal_gb) * GIB, gaps),
        compute_capability=(int(major), int(minor)) if capability else None,
        memory_bandwidth_bytes_per_second=_number(row, "bandwidth_gb_per_s", 1e9),
        bf16_flops_per_second=_number(row, "bf16_tflops", 1e12),
        fp16_flops_per_second=_number(row, "fp16_tflops", 1e12),
        pcie_generation=_whole(row, "pcie_gen"),
        pcie_lanes=_whole(row, "pcie_lanes"),
        measured_host_to_device_bytes_per_second=_number(row, "h2d_gb_per_s", 1e9),
        price_usd_per_hour_low=_number(row, "usd_per_hour_low"),
        price_usd_per_hour_high=_number(row, "usd_per_hour_high"),
        price_source=_text(row, "price_source"),
        price_accessed=_text(row, "price_accessed"),
        source=_text(row, "source") or "",
        accessed=_text(row, "accessed") or "",
        unverified=_texts(row, "unverified"),
        notes=_text(row, "notes"),
    )


def _number(row: Mapping[str, object], key: str, factor: float = 1.0) -> float | None:
    value = row.get(key)
    return value * factor if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _whole(row: Mapping[str, object], key: str) -> int | None:
    value = row.get(key)
    return value if isinstance(value, int) else None


def _text(row: Mapping[str, object], key: str) -> str | None:
    value = row.get(key)
    return value if isinstance(value, str) else None


def _texts(row: Mapping[str, object], key: str) -> tuple[str, ...]:
    value = row.get(key)
    return tuple(item for item in value if isinstance(item, str)) if isinstance(value, list) else ()


def find_gpu(name: str) -> Gpu:
    """The profile that `name` stands for; see `gpu_names.look_up_gpu` for the rules. Raises UnknownNameError."""
    from llamamath.profiles.gpu_names import look_up_gpu

    return look_up_gpu(name)[0]
