"""Which library versions the trace works with. It patches private parts of torch, so other versions are refused, not tried."""

from __future__ import annotations

from importlib import metadata

from llamamath.errors import UnavailableError

SUPPORTED = {
    "torch": ("2.13",),
    "transformers": ("5.23",),
    "trl": ("1.16",),
    "peft": ("0.21",),
    "bitsandbytes": ("0.50",),
    "accelerate": ("1.15",),
}
"""major.minor of every library whose code runs under the trace; the canaries hold on these."""

TRACE_VERSION = 1
"""Raised whenever the same job would give another result: older cached traces are then rebuilt."""

HINT = "pip install 'llamamath[train]' (a CPU-only torch is enough: --index-url https://download.pytorch.org/whl/cpu)"


def installed_versions() -> dict[str, str | None]:
    """The installed version of each library, from its metadata; None where it is absent. Imports none of them."""
    return {name: _version(name) for name in SUPPORTED}


def check_versions(found: dict[str, str | None]) -> dict[str, str]:
    """`found` with every library present and supported. Raises UnavailableError (exit 3) naming those that are not."""
    missing = [name for name, version in found.items() if version is None]
    if missing:
        raise UnavailableError(
            f"the trace needs {', '.join(missing)}, which is not installed" if len(missing) == 1 else _absent(missing), HINT
        )
    wrong = [
        f"{name} {version} (works with {' or '.join(SUPPORTED[name])})"
        for name, version in found.items()
        if version is not None and ".".join(version.split(".")[:2]) not in SUPPORTED[name]
    ]
    if wrong:
        raise UnavailableError(f"the trace does not work with {', '.join(wrong)}", HINT)
    return {name: version for name, version in found.items() if version is not None}


def _absent(names: list[str]) -> str:
    return f"the trace needs {', '.join(names)}, which are not installed"


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
