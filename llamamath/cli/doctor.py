"""`llamamath doctor`: what this machine has, what is wrong with it, and a capture to attach to a report."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from llamamath.cli.packages import Package
    from llamamath.planner.probe.findings import Finding
    from llamamath.planner.probe.parse import ProbedGpu, ProbedMachine

_STYLES = {"problem": "bold red", "warning": "yellow", "note": "cyan"}


def doctor(
    json_output: Annotated[bool, typer.Option("--json", help="Print the raw capture, findings and versions as one JSON document.")] = False,
    capture: Annotated[
        Path | None, typer.Option("--capture", metavar="FILE", help="Write that document to FILE, to attach to a report.")
    ] = None,
) -> None:
    """Look at this machine: GPUs, driver, memory, limits, disks, and the versions of what is installed.

    The capture names no user, host, path or GPU serial number. Ends with 1 if something is broken, else with 0; a machine without a GPU is
    not broken.
    """
    code = run_doctor(json_output, capture)
    if code:
        raise typer.Exit(code)


def run_doctor(json_output: bool, capture_file: Path | None = None) -> int:
    """Probe, print, and give the exit code. Raises what `write_atomically` raises."""
    from llamamath.cli.packages import installed_packages
    from llamamath.files import write_atomically
    from llamamath.planner.probe.capture import capture_machine
    from llamamath.planner.probe.findings import find
    from llamamath.planner.probe.parse import parse_capture
    from llamamath.planner.probe.redact import redact

    raw = capture_machine()
    machine = parse_capture(raw)
    packages = installed_packages()
    findings = (*find(machine), *_package_findings(packages, machine))
    document = report_document(raw, findings, packages)
    redacted = json.dumps(redact(document), indent=2) + "\n"
    if capture_file is not None:
        write_atomically(capture_file, redacted)
        print(f"capture written to {capture_file}", file=sys.stderr)
    if json_output:
        sys.stdout.write(redacted)
    else:
        _print(machine, findings, packages)
    return 1 if any(finding.severity == "problem" for finding in findings) else 0


def report_document(raw: dict[str, object], findings: Sequence[Finding], packages: Sequence[Package]) -> dict[str, object]:
    """The capture with what was made of it: still a capture, which `parse_capture` reads and a test can use as a fixture."""
    from llamamath import __version__

    return {
        **raw,
        "llamamath_version": __version__,
        "packages": {package.name: {"installed": package.installed, "tested": package.tested} for package in packages},
        "findings": [{"severity": finding.severity, "what": finding.what, "fix": finding.fix} for finding in findings],
    }


def _package_findings(packages: Sequence[Package], machine: ProbedMachine) -> list[Finding]:
    from llamamath.planner.probe.findings import Finding

    versions = {package.name: package.installed for package in packages}
    found: list[Finding] = []
    torch = versions.get("torch")
    if torch and "+cpu" in torch and machine.visible:
        fix = "install a CUDA build of torch (pytorch.org)"
        found.append(Finding(severity="problem", what=f"torch {torch} cannot use the GPU that is here", fix=fix))
    built_for = re.search(r"\+cu(\d\d)\d", torch or "")
    if built_for and machine.cuda_version and int(built_for.group(1)) > machine.cuda_version[0]:
        fix = f"update the NVIDIA driver, or install torch for CUDA {machine.cuda_version[0]}"
        found.append(Finding(severity="problem", what=f"torch {torch} needs a newer driver than {machine.driver_version}", fix=fix))
    if versions.get("pynvml"):
        what = "the package pynvml is out of date and shadows nvidia-ml-py, which brings the same module"
        found.append(Finding(severity="warning", what=what, fix="pip uninstall pynvml, then reinstall nvidia-ml-py"))
    return found


def _print(machine: ProbedMachine, findings: Sequence[Finding], packages: Sequence[Package]) -> None:
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)
    _print_gpus(console, machine)
    _print_host(console, machine)
    _print_packages(console, packages)
    console.print()
    for severity in ("problem", "warning", "note"):
        for finding in findings:
            if finding.severity == severity:
                console.print(f"{severity}: ", style=_STYLES[severity], end="")
                console.print(finding.line)
    if not any(finding.severity == "problem" for finding in findings):
        console.print("nothing is broken", style="green")


def _print_gpus(console: Console, machine: ProbedMachine) -> None:
    if machine.driver_version:
        cuda = f", CUDA up to {machine.cuda_version[0]}.{machine.cuda_version[1]}" if machine.cuda_version else ""
        console.print(f"NVIDIA driver {machine.driver_version}{cuda}", style="bold")
    for gpu in machine.gpus:
        console.print(_gpu_line(gpu, gpu in machine.visible))
    if not machine.gpus:
        console.print("no NVIDIA GPU", style="bold")


def _gpu_line(gpu: ProbedGpu, visible: bool) -> str:
    from llamamath.planner.probe.findings import title_of
    from llamamath.units import format_bytes

    parts = [] if visible else ["hidden from CUDA"]
    if gpu.total_bytes is not None:
        free = "unknown" if gpu.free_bytes is None else format_bytes(gpu.free_bytes)
        parts.append(f"{format_bytes(gpu.total_bytes)}, {free} free")
    if gpu.compute_capability:
        parts.append(f"compute capability {gpu.compute_capability[0]}.{gpu.compute_capability[1]}")
    if gpu.pcie_generation and gpu.pcie_lanes:
        parts.append(f"PCIe {gpu.pcie_generation}.0 x{gpu.pcie_lanes}")
    if gpu.power_limit_watts:
        parts.append(f"{gpu.power_limit_watts:.0f} W")
    return f"{title_of(gpu)}: {', '.join(parts) or 'does not answer'}"


def _print_host(console: Console, machine: ProbedMachine) -> None:
    from llamamath.units import format_bytes

    def size(size_bytes: int | None) -> str:
        return "unknown" if size_bytes is None else format_bytes(size_bytes)

    kind = " ".join(filter(None, ["WSL" if machine.wsl else "", "in a container" if machine.container else ""]))
    console.print(f"{machine.system or 'unknown system'}{' ' + kind if kind else ''}, Python {machine.python or 'unknown'}")
    quota = "" if machine.cpu_quota is None else f", limited to {machine.cpu_quota:g} at once"
    console.print(f"processors: {machine.num_cpus or 'unknown'}{quota}")
    swap = size(machine.swap_total_bytes)
    console.print(f"RAM: {size(machine.usable_memory_bytes)} usable of {size(machine.whole_memory_bytes)}; swap {swap}")
    console.print(f"disk: {size(machine.disk_free_bytes)} free here, {size(machine.cache_disk_free_bytes)} where Hugging Face files go")


def _print_packages(console: Console, packages: Sequence[Package]) -> None:
    from llamamath.cli.packages import EXTRAS

    by_name = {package.name: package for package in packages}
    for extra, names in EXTRAS.items():
        shown = [by_name[name].shown for name in names if name in by_name]
        console.print(f"{extra}: ", style="bold", end="")
        console.print(", ".join(shown))
