"""The host's side of a capture: memory, cgroup limits, processors, disks, the kind of system, and the few variables that steer CUDA.

Every function returns a JSON-able dictionary with an `errors` entry and never raises. No paths, names or numbers that tell who runs this:
the document is meant to be attached to a report.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from llamamath.planner.probe.guard import ask

ENVIRONMENT = (
    "CUDA_VISIBLE_DEVICES",
    "CUDA_DEVICE_ORDER",
    "NVIDIA_VISIBLE_DEVICES",
    "NVIDIA_DRIVER_CAPABILITIES",
    "PYTORCH_CUDA_ALLOC_CONF",
    "PYTORCH_ALLOC_CONF",
    "PYTORCH_NVML_BASED_CUDA_CHECK",
    "CUDA_LAUNCH_BLOCKING",
)
"""Copied as they are: what CUDA and PyTorch read, none of it secret."""

PRESENCE = ("HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "CUDA_HOME", "LD_LIBRARY_PATH", "CONDA_PREFIX", "VIRTUAL_ENV")
"""Only whether they are set."""

UNLIMITED_BYTES = 2**60
"""cgroup v1 writes "no limit" as the largest multiple of the page size below 2**63."""

_CGROUP_LEVELS = 16


def capture_environment(environ: Mapping[str, str]) -> dict[str, object]:
    """Values of `ENVIRONMENT`, presence of `PRESENCE`; nothing else leaves the machine."""
    values = {name: environ[name][:300] for name in ENVIRONMENT if name in environ}
    return {"values": values, "set": [name for name in PRESENCE if environ.get(name)]}


def capture_system(root: Path, environ: Mapping[str, str]) -> dict[str, object]:
    """Which system this is, whether WSL or a container, and whether the PCI bus shows NVIDIA cards or the kernel their device files."""
    errors: dict[str, object] = {}

    def kernel() -> str:
        import platform

        found = re.match(r"\d+(\.\d+)?", platform.release())
        return found.group() if found else ""

    def system() -> tuple[str, str, str]:
        import platform

        return platform.system(), platform.machine(), platform.python_version()

    names = ask(errors, "system", system)
    version = ask(errors, "proc_version", lambda: _read(root / "proc/version")) or ""
    return {
        "system": names[0] if names else None,
        "machine": names[1] if names else None,
        "python": names[2] if names else None,
        "kernel": ask(errors, "kernel", kernel),
        "wsl": "microsoft" in version.casefold() or bool(environ.get("WSL_DISTRO_NAME")),
        "dxg": ask(errors, "dxg", lambda: (root / "dev/dxg").exists()),
        "container": ask(errors, "container", lambda: (root / ".dockerenv").exists() or (root / "run/.containerenv").exists()),
        "nvidia_pci_cards": ask(errors, "nvidia_pci_cards", lambda: _nvidia_pci_cards(root)),
        "nvidia_device_files": ask(errors, "nvidia_device_files", lambda: len(list((root / "dev").glob("nvidia[0-9]*")))),
        "errors": errors,
    }


def _nvidia_pci_cards(root: Path) -> int:
    """Display and 3D controllers (class 03) of vendor 10de on the PCI bus; works without any driver, not inside WSL."""
    cards = 0
    for folder in (root / "sys/bus/pci/devices").glob("*"):
        if _read(folder / "vendor").strip() == "0x10de" and _read(folder / "class").startswith("0x03"):
            cards += 1
    return cards


def capture_memory(root: Path) -> dict[str, object]:
    """RAM and swap by psutil, by /proc/meminfo where psutil is missing."""
    errors: dict[str, object] = {}

    def by_psutil() -> dict[str, int]:
        import psutil

        memory, swap = psutil.virtual_memory(), psutil.swap_memory()
        return {
            "total_bytes": memory.total,
            "available_bytes": memory.available,
            "swap_total_bytes": swap.total,
            "swap_free_bytes": swap.free,
        }

    def by_meminfo() -> dict[str, int]:
        rows = dict(re.findall(r"^(\w+):\s+(\d+) kB$", _read(root / "proc/meminfo"), re.MULTILINE))
        names = {"total_bytes": "MemTotal", "available_bytes": "MemAvailable"}
        names |= {"swap_total_bytes": "SwapTotal", "swap_free_bytes": "SwapFree"}
        return {name: int(rows[key]) * 1024 for name, key in names.items()}

    found = ask(errors, "psutil", by_psutil) or ask(errors, "meminfo", by_meminfo) or {}
    return {**found, "errors": errors}


def capture_cgroup(root: Path) -> dict[str, object]:
    """Memory and processor limits of the control groups this process is in, from its own up to the root; v1, v2 or both.

    `memory` has one entry per level that sets a limit: limit, use, and the part of the use that is file cache the kernel gives back.
    """
    errors: dict[str, object] = {}
    section: dict[str, object] = {"memory": [], "cpu_quota": None, "errors": errors}
    if not (root / "proc/self/cgroup").exists():
        return section
    text = ask(errors, "cgroup", lambda: _read(root / "proc/self/cgroup")) or ""
    levels: list[dict[str, int]] = []
    quotas: list[float] = []
    for line in text.splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            for folder in _levels(root / "sys/fs/cgroup", path):
                levels += _memory_level(folder, "memory.max", "memory.current", "inactive_file ")
                quotas += _quota(folder, "cpu.max", "")
        if "memory" in controllers.split(","):
            for folder in _levels(root / "sys/fs/cgroup/memory", path):
                levels += _memory_level(folder, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file ")
        if "cpu" in controllers.split(","):
            for folder in _levels(root / "sys/fs/cgroup/cpu", path):
                quotas += _quota(folder, "cpu.cfs_quota_us", "cpu.cfs_period_us")
    section["memory"] = levels
    section["cpu_quota"] = min(quotas, default=None)
    return section


def _levels(mount: Path, path: str) -> list[Path]:
    """Folders from the process's own group up to the mount. In a container the path may be the host's, of which only the mount is there."""
    parts = [part for part in path.split("/") if part and part != ".."]
    return [mount.joinpath(*parts[:depth]) for depth in range(len(parts), -1, -1)][:_CGROUP_LEVELS]


def _memory_level(folder: Path, limit_file: str, used_file: str, cache_key: str) -> list[dict[str, int]]:
    """At most one entry; none where there is no limit, no file or no permission: then this level limits nothing that we could know of."""
    try:
        limit_bytes, used_bytes = int(_read(folder / limit_file)), int(_read(folder / used_file))
        stat = _read(folder / "memory.stat")
    except (OSError, ValueError):
        return []
    cache_bytes = next((int(line[len(cache_key) :]) for line in stat.splitlines() if line.startswith(cache_key)), 0)
    if not 0 < limit_bytes < UNLIMITED_BYTES:
        return []
    return [{"limit_bytes": limit_bytes, "used_bytes": used_bytes, "inactive_file_bytes": cache_bytes}]


def _quota(folder: Path, quota_file: str, period_file: str) -> list[float]:
    """Processors this level may use at once, as quota / period; none if unlimited ("max", -1) or not readable."""
    try:
        quota, _, period = _read(folder / quota_file).strip().partition(" ")
        microseconds, every = int(quota), int(period or _read(folder / period_file))
    except (OSError, ValueError):
        return []
    return [microseconds / every] if microseconds > 0 and every > 0 else []


def capture_cpu() -> dict[str, object]:
    """Processors: logical, physical, and those this process may run on."""
    errors: dict[str, object] = {}

    def physical() -> int | None:
        import psutil

        return psutil.cpu_count(logical=False)

    def affinity() -> int | None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None

    return {
        "logical": ask(errors, "logical", os.cpu_count),
        "physical": ask(errors, "physical", physical),
        "affinity": ask(errors, "affinity", affinity),
        "errors": errors,
    }


def capture_disk(environ: Mapping[str, str]) -> dict[str, object]:
    """Free and total bytes where this process stands and where Hugging Face files go; not the paths."""
    errors: dict[str, object] = {}

    def usage(path: Path) -> dict[str, int]:
        import shutil

        while not path.exists() and path != path.parent:
            path = path.parent
        found = shutil.disk_usage(path)
        return {"free_bytes": found.free, "total_bytes": found.total}

    return {
        "working_folder": ask(errors, "working_folder", lambda: usage(Path.cwd())),
        "hugging_face_cache": ask(errors, "hugging_face_cache", lambda: usage(hugging_face_cache(environ))),
        "errors": errors,
    }


def hugging_face_cache(environ: Mapping[str, str]) -> Path:
    """Where huggingface_hub keeps models, by its documentation: HF_HUB_CACHE, else HF_HOME/hub, else the user's cache folder."""
    if environ.get("HF_HUB_CACHE"):
        return Path(environ["HF_HUB_CACHE"]).expanduser()
    if environ.get("HF_HOME"):
        return Path(environ["HF_HOME"]).expanduser() / "hub"
    cache = Path(environ["XDG_CACHE_HOME"]) if environ.get("XDG_CACHE_HOME") else Path.home() / ".cache"
    return cache / "huggingface" / "hub"


def _read(path: Path) -> str:
    """At most 64 KiB of a system file."""
    with path.open(encoding="utf-8", errors="replace") as stream:
        return stream.read(65536)
