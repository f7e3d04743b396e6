"""A stand-in for `pynvml`: cards made of plain numbers, NVML's functions over them, and any of them made to fail."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import cast

from llamamath.planner.probe.capture import capture_machine
from llamamath.planner.probe.findings import find
from llamamath.planner.probe.nvml import Nvml
from llamamath.planner.probe.parse import ProbedMachine, parse_capture

GIB = 2**30
MIB = 2**20

NOT_SUPPORTED, NO_PERMISSION, NOT_FOUND, DRIVER_NOT_LOADED, LIBRARY_NOT_FOUND, GPU_IS_LOST, MISMATCH, UNKNOWN = 3, 4, 6, 9, 12, 15, 18, 999


_TEXTS = {
    NOT_SUPPORTED: "Not Supported",
    NO_PERMISSION: "Insufficient Permissions",
    NOT_FOUND: "Not Found",
    DRIVER_NOT_LOADED: "Driver Not Loaded",
    LIBRARY_NOT_FOUND: "NVML Shared Library Not Found",
    GPU_IS_LOST: "GPU is lost",
    MISMATCH: "RM has detected an NVML/RM version mismatch.",
    UNKNOWN: "Unknown Error",
}
"""As in nvidia-ml-py 13."""


class NVMLError(Exception):  # noqa: N818 - NVML's name
    """As nvidia-ml-py's: the code is in `value`."""

    def __init__(self, value: int) -> None:
        super().__init__(_TEXTS.get(value, f"NVML Error with code {value}"))
        self.value = value


@dataclass
class Card:
    """One GPU as NVML sees it. A field that is None is "not supported"."""

    name: str | bytes = "NVIDIA GeForce RTX 3080 Ti"
    uuid: str | bytes = "GPU-11111111-2222-3333-4444-555555555555"
    total: int | None = 12288 * MIB
    free: int = 11900 * MIB
    reserved: int | None = 245 * MIB
    capability: tuple[int, int] = (8, 6)
    link: tuple[int, int, int, int] = (1, 16, 4, 16)
    """Current generation and width, highest generation and width."""
    display: int | None = 0
    driver_model: int | None = None
    power: int | None = 350_000
    ecc: tuple[int, int] | None = None
    processes: list[tuple[int, int | None]] = field(default_factory=list)
    graphics: list[tuple[int, int | None]] = field(default_factory=list)
    mig: list[Card] | None = None


class FakeNvml:
    """NVML over `cards`. `broken[name]` is called instead of the function of that name; `calls` records the order."""

    nvmlMemory_v2 = 0x2000028  # noqa: N815 - NVML's name

    def __init__(self, *cards: Card, driver: str = "580.95.05", cuda: int = 13000) -> None:
        self.cards = cards
        self.driver = driver
        self.cuda = cuda
        self.broken: dict[str, Callable[[], object]] = {}
        self.calls: list[str] = []

    def __getattribute__(self, name: str) -> object:
        if not name.startswith("nvml") or name == "nvmlMemory_v2":
            return object.__getattribute__(self, name)
        self.calls.append(name)
        if name in self.broken:
            return lambda *_: self.broken[name]()
        return object.__getattribute__(self, name)

    def nvmlInit(self) -> None: ...
    def nvmlShutdown(self) -> None: ...

    def nvmlSystemGetDriverVersion(self) -> str:
        return self.driver

    def nvmlSystemGetNVMLVersion(self) -> bytes:
        return b"13." + self.driver.encode()

    def nvmlSystemGetCudaDriverVersion(self) -> int:
        return self.cuda

    def nvmlDeviceGetCount(self) -> int:
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Card:
        return self.cards[index]

    def nvmlDeviceGetName(self, card: Card) -> str | bytes:
        return card.name

    def nvmlDeviceGetUUID(self, card: Card) -> str | bytes:
        return card.uuid

    def nvmlDeviceGetMemoryInfo(self, card: Card, version: int | None = None) -> SimpleNamespace:
        total = _supported(card.total)
        if version is None:
            return SimpleNamespace(total=total, free=card.free, used=total - card.free)
        return SimpleNamespace(total=total, reserved=_supported(card.reserved), free=card.free, used=0)

    def nvmlDeviceGetCudaComputeCapability(self, card: Card) -> tuple[int, int]:
        return card.capability

    def nvmlDeviceGetCurrPcieLinkGeneration(self, card: Card) -> int:
        return card.link[0]

    def nvmlDeviceGetCurrPcieLinkWidth(self, card: Card) -> int:
        return card.link[1]

    def nvmlDeviceGetMaxPcieLinkGeneration(self, card: Card) -> int:
        return card.link[2]

    def nvmlDeviceGetMaxPcieLinkWidth(self, card: Card) -> int:
        return card.link[3]

    def nvmlDeviceGetDisplayActive(self, card: Card) -> int:
        return _supported(card.display)

    def nvmlDeviceGetDisplayMode(self, card: Card) -> int:
        return _supported(card.display)

    def nvmlDeviceGetCurrentDriverModel(self, card: Card) -> int:
        return _supported(card.driver_model)

    def nvmlDeviceGetPowerManagementLimit(self, card: Card) -> int:
        return _supported(card.power)

    def nvmlDeviceGetBAR1MemoryInfo(self, card: Card) -> SimpleNamespace:
        return SimpleNamespace(bar1Total=256 * MIB)

    def nvmlDeviceGetEccMode(self, card: Card) -> tuple[int, int]:
        if card.ecc is None:
            raise NVMLError(NOT_SUPPORTED)
        return card.ecc

    def nvmlDeviceGetComputeRunningProcesses(self, card: Card) -> list[SimpleNamespace]:
        return [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in card.processes]

    def nvmlDeviceGetGraphicsRunningProcesses(self, card: Card) -> list[SimpleNamespace]:
        return [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in card.graphics]

    def nvmlDeviceGetMigMode(self, card: Card) -> list[int]:
        if card.ecc is None:  # consumer cards have neither
            raise NVMLError(NOT_SUPPORTED)
        return [int(card.mig is not None)] * 2

    def nvmlDeviceGetMaxMigDeviceCount(self, card: Card) -> int:
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, card: Card, index: int) -> Card:
        if card.mig is None or index >= len(card.mig):
            raise NVMLError(NOT_FOUND)
        return card.mig[index]


def _supported(value: int | None) -> int:
    if value is None:
        raise NVMLError(NOT_SUPPORTED)
    return value


def raising(error: BaseException) -> Callable[[], object]:
    """A function that raises `error`."""

    def fail() -> object:
        raise error

    return fail


def loading(nvml: FakeNvml) -> Callable[[], Nvml]:
    """What `capture_machine` calls to get `pynvml`."""
    return lambda: cast(Nvml, nvml)


def probe(*cards: Card, **environ: str) -> ProbedMachine:
    """This machine, if it had `cards` and this environment."""
    return parse_capture(capture_machine(load=loading(FakeNvml(*cards)), environ=environ))


def problems(probed: ProbedMachine) -> list[str]:
    """What is broken, in words."""
    return [finding.line for finding in find(probed) if finding.severity == "problem"]


FIXTURES = Path(__file__).parent.parent / "fixtures" / "probe"
NAMES = sorted(path.stem for path in FIXTURES.glob("*.json"))


def document(name: str) -> dict[str, object]:
    """A capture of tests/fixtures/probe."""
    loaded = json.loads((FIXTURES / f"{name}.json").read_text(encoding="utf-8"))
    assert isinstance(loaded, dict)
    return loaded
