"""Reading captures, and the device that comes of them: `auto`, numbers, names, sizes. No GPU needed."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fake_nvml import MIB, NAMES, Card, FakeNvml, document, loading, probe, problems
from hypothesis import given
from hypothesis import strategies as st

from llamamath.errors import FieldError, UnavailableError, UnknownNameError, UsageError
from llamamath.planner.device import Device
from llamamath.planner.probe.capture import capture_machine
from llamamath.planner.probe.devices import device_for
from llamamath.planner.probe.findings import find
from llamamath.planner.probe.parse import ProbedMachine, parse_capture
from llamamath.planner.probe.redact import redact

GIB = 2**30


def machine(name: str) -> ProbedMachine:
    return parse_capture(document(name))


@pytest.mark.parametrize("name", NAMES)
def test_every_fixture_reads_and_gives_a_device(name: str) -> None:
    raw = document(name)
    assert raw["origin"] in ("constructed", "recorded") and raw["about"]
    probed = parse_capture(raw)
    device, looked_at = device_for("auto", machine=probed)
    assert looked_at and 0 < device.limit_bytes <= device.total_bytes
    assert device.kind == ("cuda" if any(gpu.usable for gpu in probed.visible) else "cpu")
    assert redact(raw) == raw, "a fixture carries nothing that a report must not"


def test_all_the_situations_are_there() -> None:
    assert set(NAMES) >= {
        "rtx3080ti_laptop_wsl",
        "two_gpus_second_visible",
        "a100_mig",
        "no_driver",
        "version_mismatch",
        "no_permission",
        "gpu_lost_midway",
        "busy",
        "container_limited",
        "cpu_container",
    }


def test_a_laptop_under_wsl() -> None:
    device, _ = device_for("auto", machine=machine("rtx3080ti_laptop_wsl"))
    assert (device.name, device.limit_bytes, device.limit_basis) == ("NVIDIA GeForce RTX 3080 Ti Laptop GPU", 14702 * MIB, "free now")
    assert device.memory_bandwidth_bytes_per_second == 512e9, "the laptop's, not the desktop card's 912"
    assert device.host_to_device_bytes_per_second == pytest.approx(0.8 * 8 * 1.969e9, rel=1e-3)
    assert any("spill" in note for note in device.notes) and any("display" in note for note in device.notes)


def test_two_gpus_one_visible() -> None:
    probed = machine("two_gpus_second_visible")
    device, looked_at = device_for("auto", machine=probed)
    assert device.name == "NVIDIA GeForce RTX 3080 Ti" and "CUDA_VISIBLE_DEVICES=1: 1 of 2 GPUs visible" in looked_at
    assert device_for("cuda:0", machine=probed)[0].name == device.name, "numbers count what is visible"
    with pytest.raises(UsageError, match="no GPU 1; visible: 0: NVIDIA GeForce RTX 3080 Ti"):
        device_for("auto:1", machine=probed)


def test_mig() -> None:
    probed = machine("a100_mig")
    assert len(probed.gpus) == 2 and len(probed.visible) == 1
    device, _ = device_for("auto", machine=probed)
    assert device.name.endswith("MIG 3g.40gb") and device.total_bytes == 40448 * MIB
    assert device.memory_bandwidth_bytes_per_second is None and device.bf16_flops_per_second is None


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no_driver", "no NVIDIA driver: install the driver"),
        ("version_mismatch", "different versions, as after an update: reboot"),
        ("no_permission", "no permission"),
        ("gpu_lost_midway", "fell off the bus: reboot"),
    ],
)
def test_what_is_broken_is_said_and_the_cpu_remains(name: str, words: str) -> None:
    probed = machine(name)
    assert len(problems(probed)) == 1 and words in problems(probed)[0]
    device, looked_at = device_for("auto", machine=probed)
    assert device.kind == "cpu" and any(words in line for line in looked_at)
    with pytest.raises(UnavailableError, match=words.split(":")[0]):
        device_for("cuda:0", machine=probed)


def test_others_on_the_card() -> None:
    device, _ = device_for("auto", machine=machine("busy"))
    assert device.limit_bytes < 14 * GIB and any("10.29 GiB held by 2 other processes" in note for note in device.notes)
    whole, _ = device_for("auto", use_total=True, machine=machine("busy"))
    assert whole.limit_bytes == (24564 - 357) * MIB and "holds back" in whole.limit_basis


def test_a_container_bounds_ram_and_processors() -> None:
    probed = machine("container_limited")
    assert probed.usable_memory_bytes == 14 * GIB and probed.whole_memory_bytes == 16 * GIB
    device, _ = device_for("cpu", machine=probed)
    assert (device.name, device.kind, device.limit_bytes, device.host_memory_bytes) == ("CPU (4 cores)", "cpu", 14 * GIB, 14 * GIB)
    assert device.memory_bandwidth_bytes_per_second is None and device.bf16_flops_per_second is None
    assert device_for("auto", machine=probed)[0].host_memory_bytes == 14 * GIB


def test_a_machine_without_a_gpu_is_not_broken() -> None:
    probed = machine("cpu_container")
    assert problems(probed) == []
    device, looked_at = device_for("auto", machine=probed)
    assert device.kind == "cpu" and looked_at[1] == "no usable NVIDIA GPU, so the CPU and RAM"


# --- devices


def test_auto_takes_the_most_free_memory() -> None:
    full = Card(name="NVIDIA GeForce RTX 3090", total=24576 * MIB, free=2 * GIB, uuid="GPU-x")
    probed = probe(full, Card())
    device, looked_at = device_for("auto", machine=probed)
    assert device.name == "NVIDIA GeForce RTX 3080 Ti" and "most free memory of 2 visible GPUs" in looked_at[-1]
    assert device_for("auto", use_total=True, machine=probed)[0].name == "NVIDIA GeForce RTX 3090"
    assert device_for("gpu:0", machine=probed)[0].limit_bytes == 2 * GIB
    assert any("CUDA_DEVICE_ORDER" in finding.line for finding in find(probed))


def test_hidden_gpus_are_not_used() -> None:
    probed = probe(Card(), CUDA_VISIBLE_DEVICES="")
    device, looked_at = device_for("auto", machine=probed)
    assert device.kind == "cpu" and "hides every GPU" in " ".join(looked_at)
    with pytest.raises(UnavailableError, match="hides every GPU"):
        device_for("auto:0", machine=probed)


def test_unknown_free_memory_falls_back_to_capacity() -> None:
    nvml = FakeNvml(Card(name="NVIDIA GeForce RTX 4090", total=24564 * MIB, reserved=None))
    probed = parse_capture(capture_machine(load=loading(nvml), environ={}))
    blind = replace(probed, visible=tuple(replace(gpu, free_bytes=None) for gpu in probed.visible))
    device, _ = device_for("auto", machine=blind)
    assert device.limit_bytes == round(23.52 * GIB) and "does not say what is free" in device.limit_basis


def test_shared_memory_without_a_size_is_explained() -> None:
    probed = probe(Card(name="NVIDIA GB10", total=None))
    assert "give the size instead" in problems(probed)[0]
    assert device_for("auto", machine=probed)[0].kind == "cpu"


def test_an_unknown_card_has_memory_and_no_rates() -> None:
    device, _ = device_for("auto", machine=probe(Card(name="NVIDIA Future 9090", capability=(14, 0))))
    assert device.limit_bytes == 11900 * MIB and device.bf16_flops_per_second is None and device.compute_capability == (14, 0)
    assert any("rates unknown" in note for note in device.notes)


def forbidden() -> ProbedMachine:
    raise AssertionError("a name needs no probe")


@pytest.mark.parametrize("spec", ["3080 ti", "NVIDIA GeForce RTX 3080 Ti", "12GiB", "a100", "500 MiB"])
def test_names_and_sizes_do_not_probe(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llamamath.planner.probe.devices.probe_machine", forbidden)
    assert device_for(spec)[0].kind == "cuda"


def test_a_named_card_is_its_profile_even_where_it_is_present() -> None:
    device, looked_at = device_for("rtx3080ti", machine=probe(Card(free=GIB)))
    assert device.limit_bytes > 11 * GIB and device.host_memory_bytes is None and looked_at == ("profile of NVIDIA GeForce RTX 3080 Ti",)
    assert device.price_usd_per_hour_low is None and device_for("4090")[0].price_usd_per_hour_low == 0.31


def test_a_size_is_a_card_without_rates() -> None:
    device, _ = device_for("12GiB")
    assert (device.total_bytes, device.limit_bytes, device.compute_capability) == (12 * GIB, 12 * GIB, None)
    assert device.bf16_flops_per_second is None and device_for("12GB")[0].limit_bytes == 12 * 10**9


def test_the_limit_given_only_lowers() -> None:
    lowered = device_for("4090", vram_limit_bytes=10 * GIB)[0]
    assert lowered.limit_bytes == 10 * GIB and lowered.limit_basis.startswith("the limit given, of 23.52 GiB")
    raised = device_for("4090", vram_limit_bytes=30 * GIB)[0]
    assert raised.limit_bytes == round(23.52 * GIB) and "above what there is" in raised.notes[-1]
    for size in (0, -1):
        with pytest.raises(FieldError):
            device_for("4090", vram_limit_bytes=size)


@pytest.mark.parametrize("spec", ["", "auto:", "auto:-1", "cuda:x", "rtx", "12", "99999", "tpu"])
def test_a_spec_that_means_nothing(spec: str) -> None:
    with pytest.raises(UnknownNameError) as caught:
        device_for(spec, machine=machine("cpu_container"))
    assert "`auto`" in caught.value.hint


def test_no_ram_and_no_gpu() -> None:
    blind = replace(machine("cpu_container"), total_memory_bytes=None, available_memory_bytes=None)
    with pytest.raises(UnavailableError, match="neither a GPU nor the size of RAM"):
        device_for("auto", machine=blind)


@given(st.integers(1, 2**50), st.sampled_from(NAMES), st.booleans())
def test_a_device_never_promises_more_than_there_is(limit_bytes: int, name: str, use_total: bool) -> None:
    probed = machine(name)
    device: Device = device_for("auto", machine=probed, vram_limit_bytes=limit_bytes, use_total=use_total)[0]
    assert 0 < device.limit_bytes <= min(limit_bytes, device.total_bytes)
    assert device.host_memory_bytes == probed.usable_memory_bytes


# --- documents from elsewhere


def test_another_document_is_refused() -> None:
    for other in ({}, {"schema_version": 2, "kind": "llamamath-probe"}, {"schema_version": 1}):
        with pytest.raises(UsageError, match="not a capture"):
            parse_capture(other)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)


@given(st.data())
def test_any_section_may_be_damaged(data: st.DataObject) -> None:
    damaged = document(data.draw(st.sampled_from(NAMES)))
    for _ in range(data.draw(st.integers(1, 4))):
        place: object = damaged
        while isinstance(place, (dict, list)) and place:
            key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
            inner = place[key]
            if not isinstance(inner, (dict, list)) or not inner or data.draw(st.booleans()):
                place[key] = data.draw(JSON)
                break
            place = inner
    damaged |= {"schema_version": 1, "kind": "llamamath-probe"}
    probed = parse_capture(damaged)
    find(probed)
    redact(damaged)
    try:
        device = device_for("auto", machine=probed)[0]
    except UnavailableError:
        assert probed.usable_memory_bytes is None
    else:
        assert 0 <= device.limit_bytes <= device.total_bytes
