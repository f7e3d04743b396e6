"""Capturing a machine: every query may fail, nothing is raised, and nothing personal leaves. No GPU needed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest
from fake_nvml import (
    DRIVER_NOT_LOADED,
    GPU_IS_LOST,
    LIBRARY_NOT_FOUND,
    MIB,
    MISMATCH,
    NO_PERMISSION,
    NOT_FOUND,
    UNKNOWN,
    Card,
    FakeNvml,
    NVMLError,
    loading,
    probe,
    problems,
    raising,
)

from llamamath.planner.probe.capture import capture_machine
from llamamath.planner.probe.devices import device_for, probe_machine
from llamamath.planner.probe.findings import find
from llamamath.planner.probe.guard import describe
from llamamath.planner.probe.host import capture_cgroup, capture_environment, capture_memory, capture_system, hugging_face_cache
from llamamath.planner.probe.nvml import Nvml
from llamamath.planner.probe.parse import parse_capture
from llamamath.planner.probe.redact import redact

GIB = 2**30

BUSY_MIG = Card(name=b"NVIDIA A100-SXM4-80GB", total=81920 * MIB, ecc=(1, 1), mig=[Card(uuid="MIG-aaaa")], processes=[(1, GIB)])
CALLS = sorted(name for name in dir(FakeNvml) if name.startswith("nvml") and name != "nvmlMemory_v2")
ERRORS: list[Exception] = [
    NVMLError(GPU_IS_LOST),
    NVMLError(UNKNOWN),
    OSError(13, "Permission denied", "/home/somebody/secret"),
    AttributeError("an old module"),
    RuntimeError(),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("call", CALLS)
def test_any_nvml_call_may_fail(call: str, error: Exception) -> None:
    for card in (Card(), BUSY_MIG):
        nvml = FakeNvml(card, Card(uuid="GPU-2222"))
        nvml.broken[call] = raising(error)
        captured = capture_machine(load=loading(nvml), environ={})
        assert type(error).__name__ in json.dumps(captured) or call not in nvml.calls
        assert "somebody" not in json.dumps(captured), "no paths from system errors"
        assert ("nvmlShutdown" in nvml.calls) == (call != "nvmlInit"), "NVML is shut down if it was started"
        probed = parse_capture(captured)
        find(probed)
        device_for("auto", machine=probed)
        redact(captured)


def answering(value: object) -> Callable[[], object]:
    return lambda: value


@pytest.mark.parametrize("call", CALLS)
def test_any_nvml_function_may_answer_nonsense(call: str) -> None:
    for nonsense in (None, -1, "x", b"\xff", [], object(), 2**70):
        nvml = FakeNvml(Card(), BUSY_MIG)
        nvml.broken[call] = answering(nonsense)
        probed = parse_capture(json.loads(json.dumps(capture_machine(load=loading(nvml), environ={}))))
        find(probed)
        device_for("auto", machine=probed)


def test_a_healthy_card_is_read_whole() -> None:
    gpu = probe(Card(processes=[(os.getpid(), GIB), (7, 2 * GIB)], graphics=[(7, GIB), (8, None)], display=1)).visible[0]
    assert gpu.name == "NVIDIA GeForce RTX 3080 Ti"
    assert (gpu.total_bytes, gpu.free_bytes, gpu.reserved_bytes) == (12 * GIB, 11900 * MIB, 245 * MIB)
    assert (gpu.compute_capability, gpu.display, gpu.power_limit_watts, gpu.ecc) == ((8, 6), True, 350.0, None)
    assert (gpu.pcie_generation, gpu.pcie_lanes) == (4, 16), "an idle link runs at generation 1: the highest counts"
    assert gpu.num_others == 2 and gpu.others_bytes is None, "one of them does not tell"


def test_the_functions_we_ask_for_are_nvidias() -> None:
    """A canary: nvidia-ml-py renames now and then, and the guard would turn that into silence."""
    pynvml = pytest.importorskip("pynvml")
    wanted = {name for name in vars(Nvml) if name.startswith("nvml")} | set(Nvml.__annotations__)
    assert wanted == {name for name in dir(FakeNvml) if name.startswith("nvml")}, "the stand-in has what the protocol has"
    assert {name for name in wanted if not hasattr(pynvml, name)} == set()
    codes = {"NO_PERMISSION": NO_PERMISSION, "GPU_IS_LOST": GPU_IS_LOST, "DRIVER_NOT_LOADED": DRIVER_NOT_LOADED, "UNKNOWN": UNKNOWN}
    codes |= {"NOT_FOUND": NOT_FOUND, "LIBRARY_NOT_FOUND": LIBRARY_NOT_FOUND, "LIB_RM_VERSION_MISMATCH": MISMATCH}
    assert {name: getattr(pynvml, f"NVML_ERROR_{name}") for name in codes} == codes


def test_module_absent_or_broken() -> None:
    for error in (ModuleNotFoundError("No module named 'pynvml'"), SyntaxError("odd"), NVMLError(DRIVER_NOT_LOADED)):
        probed = parse_capture(capture_machine(load=cast(Callable[[], Nvml], raising(error)), environ={}))
        assert probed.gpus == () and len(problems(probed)) == 1


def test_an_error_whose_text_fails_too() -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise ValueError

    assert describe(Mute()) == {"type": "Mute", "code": None, "message": ""}


def test_this_machine_can_be_probed() -> None:
    probed = probe_machine()
    assert probed.usable_memory_bytes and probed.whole_memory_bytes and probed.usable_memory_bytes <= probed.whole_memory_bytes
    assert probed.num_cpus and probed.disk_free_bytes


def test_a_capture_is_json_and_reads_the_same_afterwards() -> None:
    captured = capture_machine(load=loading(FakeNvml(Card(), BUSY_MIG)), environ={"CUDA_VISIBLE_DEVICES": "0"})
    assert parse_capture(json.loads(json.dumps(captured))) == parse_capture(captured)


def test_permission_denied_on_processes_is_no_problem() -> None:
    nvml = FakeNvml(Card(free=2 * GIB))
    for call in ("nvmlDeviceGetComputeRunningProcesses", "nvmlDeviceGetGraphicsRunningProcesses"):
        nvml.broken[call] = raising(NVMLError(NO_PERMISSION))
    probed = parse_capture(capture_machine(load=loading(nvml), environ={}))
    assert problems(probed) == [] and probed.visible[0].num_others is None
    assert any("in use" in finding.what for finding in find(probed))


# --- the host's side


def lay(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_cgroup_v2_takes_every_level(tmp_path: Path) -> None:
    root = lay(
        tmp_path,
        {
            "proc/self/cgroup": "0::/slurm/job\n",
            "sys/fs/cgroup/slurm/job/memory.max": "max\n",
            "sys/fs/cgroup/slurm/job/memory.current": "5\n",
            "sys/fs/cgroup/slurm/job/memory.stat": "",
            "sys/fs/cgroup/slurm/job/cpu.max": "max 100000\n",
            "sys/fs/cgroup/slurm/memory.max": f"{16 * GIB}\n",
            "sys/fs/cgroup/slurm/memory.current": f"{6 * GIB}\n",
            "sys/fs/cgroup/slurm/memory.stat": f"anon 1\ninactive_file {4 * GIB}\n",
            "sys/fs/cgroup/slurm/cpu.max": "250000 100000\n",
        },
    )
    captured = capture_cgroup(root)
    assert captured["memory"] == [{"limit_bytes": 16 * GIB, "used_bytes": 6 * GIB, "inactive_file_bytes": 4 * GIB}]
    assert captured["cpu_quota"] == 2.5


def test_cgroup_v1_in_a_container_whose_path_is_the_hosts(tmp_path: Path) -> None:
    root = lay(
        tmp_path,
        {
            "proc/self/cgroup": "5:memory:/docker/0123\n4:cpu,cpuacct:/docker/0123\n0::/\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{8 * GIB}\n",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{GIB}\n",
            "sys/fs/cgroup/memory/memory.stat": f"inactive_file 1\ntotal_inactive_file {GIB // 2}\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "400000\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        },
    )
    captured = capture_cgroup(root)
    assert captured["memory"] == [{"limit_bytes": 8 * GIB, "used_bytes": GIB, "inactive_file_bytes": GIB // 2}]
    assert captured["cpu_quota"] == 4.0


@pytest.mark.parametrize("limit", ["9223372036854771712", "max", "-1", "", "many"])
def test_no_limit_is_no_limit(tmp_path: Path, limit: str) -> None:
    group = "sys/fs/cgroup/memory/memory."
    files = {group + "limit_in_bytes": limit, group + "usage_in_bytes": "1", group + "stat": ""}
    root = lay(tmp_path, {"proc/self/cgroup": "1:memory:/\n", **files})
    assert capture_cgroup(root)["memory"] == []


def test_memory_without_psutil(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "psutil", None)
    lay(tmp_path, {"proc/meminfo": "MemTotal: 100 kB\nMemAvailable:   60 kB\nSwapTotal: 0 kB\nSwapFree: 0 kB\nHugePages_Total: 0\n"})
    assert (capture_memory(tmp_path)["total_bytes"], capture_memory(tmp_path)["available_bytes"]) == (102400, 61440)
    nothing = capture_memory(tmp_path / "absent")
    assert set(nothing) == {"errors"} and nothing["errors"]


def test_wsl_containers_and_cards_without_a_driver(tmp_path: Path) -> None:
    card = "sys/bus/pci/devices/0000:01:00.0/"
    root = lay(
        tmp_path,
        {
            "proc/version": "Linux version 6.6-microsoft-standard-WSL2 (somebody@build)",
            "dev/dxg": "",
            ".dockerenv": "",
            card + "vendor": "0x10de\n",
            card + "class": "0x030000\n",
            card.replace("01:00.0", "01:00.1") + "vendor": "0x10de\n",
            card.replace("01:00.0", "01:00.1") + "class": "0x040300\n",
        },
    )
    captured = capture_system(root, {})
    assert (captured["wsl"], captured["dxg"], captured["container"], captured["nvidia_pci_cards"]) == (True, True, True, 1)
    assert "somebody" not in json.dumps(captured)


def test_only_harmless_variables_are_kept() -> None:
    kept = capture_environment({"CUDA_VISIBLE_DEVICES": "1", "HF_TOKEN": "hf_secret", "HF_HOME": "/home/somebody/hf", "PATH": "/bin"})
    assert kept == {"values": {"CUDA_VISIBLE_DEVICES": "1"}, "set": ["HF_HOME"]}


def test_where_hugging_face_files_go() -> None:
    assert hugging_face_cache({"HF_HUB_CACHE": "/a", "HF_HOME": "/b"}) == Path("/a")
    assert hugging_face_cache({"HF_HOME": "/b"}) == Path("/b/hub")
    assert hugging_face_cache({"XDG_CACHE_HOME": "/c"}) == Path("/c/huggingface/hub")
    assert hugging_face_cache({}) == Path.home() / ".cache/huggingface/hub"


# --- redaction


def test_a_report_names_nobody_and_still_parses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.setenv("USER", "somebody")
    monkeypatch.setenv("HOSTNAME", "turing-box")
    cards = (Card(uuid="GPU-aaaa1111-2222"), Card(uuid="GPU-bbbb1111-2222"))
    nvml = FakeNvml(*cards)
    nvml.broken["nvmlDeviceGetDisplayMode"] = raising(RuntimeError("cannot read /home/somebody/.nv on turing-box, nor /mnt/somebody"))
    raw = capture_machine(load=loading(nvml), environ={"CUDA_VISIBLE_DEVICES": "GPU-bbbb,GPU-zzzz9"})
    clean = redact(raw)
    text = json.dumps(clean)
    assert not any(secret in text for secret in ("somebody", "turing", "1111", "zzzz9"))
    assert [gpu.index for gpu in parse_capture(clean).visible] == [gpu.index for gpu in parse_capture(raw).visible] == [1]
    assert redact(clean) == clean
