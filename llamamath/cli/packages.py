"""Which of the packages that llamamath works with are installed, and the versions it was tested with. Imports none of them."""

from __future__ import annotations

from dataclasses import dataclass

TESTED = {
    "torch": "2.13.0",
    "transformers": "5.23.0",
    "trl": "1.16.0",
    "peft": "0.21.2",
    "bitsandbytes": "0.50.2",
    "accelerate": "1.15.0",
    "datasets": "5.2.0",
    "math-verify": "0.9.0",
    "sympy": "1.14.0",
    "nvidia-ml-py": "13.615.71",
    "psutil": "7.2.2",
    "typer": "0.29.2",
    "rich": "15.0.0",
    "PyYAML": "6.0.3",
}
"""The versions that the memory model was checked against and the tests run with."""

EXTRAS = {
    "base": ("typer", "rich", "PyYAML", "psutil", "nvidia-ml-py"),
    "training": ("torch", "transformers", "trl", "peft", "bitsandbytes", "accelerate", "datasets"),
    "evaluation": ("math-verify", "sympy"),
    "optional": ("vllm", "flash-attn", "liger-kernel"),
}
"""What each group of features needs."""

_UNWANTED = ("pynvml",)
"""Looked for because they get in the way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """One distribution: its installed version (None if absent) and the one it was tested with (None if any will do)."""

    name: str
    installed: str | None
    tested: str | None

    @property
    def shown(self) -> str:
        """`"torch 2.13.0+cu130"`, `"trl 1.15.0 (tested: 1.16.0)"`, `"vllm absent"`."""
        if self.installed is None:
            return f"{self.name} absent"
        same = self.tested is None or self.installed.partition("+")[0] == self.tested
        return f"{self.name} {self.installed}" if same else f"{self.name} {self.installed} (tested: {self.tested})"


def installed_packages() -> tuple[Package, ...]:
    """Every package of `EXTRAS`, and the unwanted ones that are installed, from the installation's metadata."""
    from importlib import metadata

    def version(name: str) -> str | None:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            return None
        except (OSError, KeyError, ValueError):  # damaged metadata: there, but not telling
            return "unknown"

    wanted = [name for names in EXTRAS.values() for name in names]
    found = [Package(name=name, installed=version(name), tested=TESTED.get(name)) for name in wanted]
    unwanted = [Package(name=name, installed=version(name), tested=None) for name in _UNWANTED]
    return (*found, *(package for package in unwanted if package.installed))
