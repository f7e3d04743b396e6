"""GPU profiles: every row has its sources and adds up, and a name finds its card or none."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamamath.errors import UnknownNameError
from llamamath.profiles.gpu_names import look_up_gpu, match_nvml, split_name
from llamamath.profiles.gpus import Gpu, all_gpus, find_gpu, pcie_copy_bytes_per_second
from llamamath.units import GIB, MIB

IDS = [gpu.name for gpu in all_gpus()]


@pytest.mark.parametrize("gpu", all_gpus(), ids=IDS)
def test_a_row_has_sources_and_sane_figures(gpu: Gpu) -> None:
    assert gpu.source and gpu.accessed, "every row names its source and the date"
    assert (gpu.price_usd_per_hour_low is None) == (gpu.price_source is None)
    assert (gpu.torch_total_bytes is None) == (gpu.torch_total_source is None)
    assert gpu.total_bytes is not None and 0.93 < gpu.total_bytes / (gpu.nominal_gb * GIB) < 1.001
    assert 0.9 * gpu.total_bytes < gpu.usable_bytes < gpu.total_bytes
    assert gpu.usable_basis
    assert gpu.compute_capability is not None
    if gpu.compute_capability < (8, 0):
        assert gpu.bf16_flops_per_second is None, "no bf16 tensor cores before 8.0"
    else:
        assert gpu.bf16_flops_per_second == gpu.fp16_flops_per_second == gpu.tensor_flops_per_second
    assert gpu.laptop == ("Laptop" in gpu.name)
    if gpu.price_usd_per_hour_low is not None and gpu.price_usd_per_hour_high is not None:
        assert 0 < gpu.price_usd_per_hour_low <= gpu.price_usd_per_hour_high


def test_names_are_unique_and_find_their_row() -> None:
    assert len(set(IDS)) == len(IDS)
    for gpu in all_gpus():
        assert find_gpu(gpu.name) is gpu
        assert look_up_gpu(gpu.name)[1] == (), "a full name needs no remark"


def test_every_alias_finds_a_row_that_has_it() -> None:
    for gpu in all_gpus():
        for alias in (gpu.nvml_name, *gpu.aliases):
            found = find_gpu(alias)
            assert alias in (found.nvml_name, *found.aliases) or split_name(alias).key == split_name(found.nvml_name).key


def test_the_driver_reports_each_row() -> None:
    for gpu in all_gpus():
        assert match_nvml(gpu.nvml_name, gpu.total_bytes)[0] is gpu


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("rtx3080ti", "NVIDIA GeForce RTX 3080 Ti"),
        ("3080 ti", "NVIDIA GeForce RTX 3080 Ti"),
        ("RTX-3080-Ti", "NVIDIA GeForce RTX 3080 Ti"),
        ("NVIDIA GeForce RTX 3080 Ti", "NVIDIA GeForce RTX 3080 Ti"),
        ("rtx_3080_ti_12gb", "NVIDIA GeForce RTX 3080 Ti"),
        ("3080ti-laptop", "NVIDIA GeForce RTX 3080 Ti Laptop GPU"),
        ("NVIDIA GeForce RTX 3080 Ti Laptop GPU", "NVIDIA GeForce RTX 3080 Ti Laptop GPU"),
        ("RTX 3080 Ti Mobile 16 GB", "NVIDIA GeForce RTX 3080 Ti Laptop GPU"),
        ("4090", "NVIDIA GeForce RTX 4090"),
        (" RTX 4090 24G ", "NVIDIA GeForce RTX 4090"),
        ("4090 laptop", "NVIDIA GeForce RTX 4090 Laptop GPU"),
        ("a100", "NVIDIA A100-SXM4-40GB"),
        ("A100-SXM4-80GB", "NVIDIA A100-SXM4-80GB"),
        ("A100 40GB", "NVIDIA A100-SXM4-40GB"),
        ("a100 pcie 80gb", "NVIDIA A100 80GB PCIe"),
        ("H100", "NVIDIA H100 80GB HBM3"),
        ("t4", "Tesla T4"),
        ("Tesla T4", "Tesla T4"),
        ("3080", "NVIDIA GeForce RTX 3080 10GB"),
        ("3080-12gb", "NVIDIA GeForce RTX 3080 12GB"),
        ("3080 12GiB", "NVIDIA GeForce RTX 3080 12GB"),
        ("4060ti 16gb", "NVIDIA GeForce RTX 4060 Ti 16GB"),
        ("a10g", "NVIDIA A10G"),
        ("A10 24GB", "NVIDIA A10"),
        ("L40S", "NVIDIA L40S"),
        ("rtxa6000", "NVIDIA RTX A6000"),
        ("RTX 6000 Ada", "NVIDIA RTX 6000 Ada Generation"),
        ("4070s", "NVIDIA GeForce RTX 4070 SUPER"),
    ],
)
def test_what_people_type(typed: str, name: str) -> None:
    assert find_gpu(typed).name == name


@pytest.mark.parametrize(
    ("typed", "closest"),
    [
        ("3080 ti 16gb", "NVIDIA GeForce RTX 3080 Ti Laptop GPU"),
        ("3080 ti laptop 12gb", "NVIDIA GeForce RTX 3080 Ti"),
        ("3080 24gb", "NVIDIA GeForce RTX 3080 10GB"),
        ("1080 ti laptop", "NVIDIA GeForce GTX 1080 Ti"),
        ("4090 max-q", "NVIDIA GeForce RTX 4090"),
        ("6000", "NVIDIA RTX A6000"),
        ("3080m", "NVIDIA GeForce RTX 3080 10GB"),
        ("rtx 3081 ti", "NVIDIA GeForce RTX 3080 Ti"),
    ],
)
def test_a_near_miss_is_an_error_that_names_the_nearest(typed: str, closest: str) -> None:
    with pytest.raises(UnknownNameError) as caught:
        find_gpu(typed)
    assert closest in caught.value.closest
    assert caught.value.exit_code == 2 and caught.value.hint


def test_the_sixteen_gigabyte_desktop_card_of_the_papers_is_explained() -> None:
    with pytest.raises(UnknownNameError) as caught:
        find_gpu("RTX 3080 Ti (16GB)")
    assert caught.value.hint == "NVIDIA GeForce RTX 3080 Ti Laptop GPU has 16 GB; NVIDIA GeForce RTX 3080 Ti has 12 GB"


@pytest.mark.parametrize(
    "typed", ["", "RTX", "nvidia", "foo", "rx 7900 xtx", "apple m3", "\0", "²", "x" * 10_000, "A100 MIG 1g.5gb", "12", "gpu", "rtx306012gb"]
)
def test_nonsense_is_an_error(typed: str) -> None:
    with pytest.raises(UnknownNameError):
        find_gpu(typed)


def test_a_bare_number_is_asked_for_its_unit() -> None:
    with pytest.raises(UnknownNameError) as caught:
        find_gpu("12")
    assert "12GiB" in caught.value.hint


def test_a_choice_among_sizes_is_said() -> None:
    gpu, remarks = look_up_gpu("3080")
    assert gpu.nominal_gb == 10 and "NVIDIA GeForce RTX 3080 12GB" in remarks[0]


@given(st.text(max_size=40))
def test_any_text_finds_a_card_or_says_no(typed: str) -> None:
    try:
        found = find_gpu(typed)
    except UnknownNameError:
        return
    parts = split_name(typed)
    assert found.laptop == parts.laptop and parts.size_gb in (None, found.nominal_gb)


@given(st.sampled_from(all_gpus()), st.sampled_from(["", " ", "-", "_"]), st.booleans())
def test_spelling_does_not_matter(gpu: Gpu, separator: str, upper: bool) -> None:
    name = gpu.name if "GB" in gpu.name and not separator else separator.join(gpu.name.split())  # 306012GB: which 12?
    assert find_gpu(name.upper() if upper else name.lower()) is gpu


def test_the_driver_never_matches_another_size() -> None:
    name = "NVIDIA GeForce RTX 3080"
    ten, twelve = match_nvml(name, 10240 * MIB)[0], match_nvml(name, 12288 * MIB)[0]
    assert ten is not None and ten.nominal_gb == 10 and twelve is not None and twelve.nominal_gb == 12
    assert match_nvml(name, 20 * GIB)[0] is None, "a modified card"
    assert match_nvml(name, None)[0] is None, "two sizes, none told"
    assert match_nvml("NVIDIA GeForce RTX 3080 Ti", None)[0] is find_gpu("3080 ti")
    assert match_nvml("NVIDIA RTX 6000 Ada Generation", 46068 * MIB)[0] is find_gpu("6000 ada"), "ECC takes a sixteenth"
    assert match_nvml("NVIDIA GeForce RTX 3080 Ti Laptop GPU", 12288 * MIB)[0] is None
    assert match_nvml("NVIDIA A100-SXM4-80GB MIG 1g.10gb", 9728 * MIB)[0] is None
    assert match_nvml("", GIB)[0] is None


def test_published_figures() -> None:
    """NVIDIA's own tables, dense with fp32 accumulation: GA102 whitepaper v2, Ada whitepaper v2.1, A100, H100 and T4 datasheets."""
    assert find_gpu("3080 10gb").bf16_flops_per_second == pytest.approx(59.5e12)
    assert find_gpu("3090").bf16_flops_per_second == pytest.approx(71e12, rel=0.01)
    assert find_gpu("4090").bf16_flops_per_second == pytest.approx(165.2e12)
    assert find_gpu("a100 80gb").bf16_flops_per_second == 312e12
    assert find_gpu("h100").bf16_flops_per_second == 1979e12 / 2
    assert find_gpu("t4").tensor_flops_per_second == 65e12 and find_gpu("t4").bf16_flops_per_second is None
    assert find_gpu("3080 ti").memory_bandwidth_bytes_per_second == 912e9


def test_capacity_is_what_torch_sees_or_a_bound_below_it() -> None:
    """RTX 4090: 23.52 to 23.64 GiB in out-of-memory messages. The fallback must not promise more than torch was seen to have."""
    assert find_gpu("4090").usable_bytes == round(23.52 * GIB)
    for gpu in all_gpus():
        if gpu.torch_total_bytes is not None and gpu.total_bytes is not None:
            assert gpu.total_bytes - gpu.driver_reserve_bytes <= gpu.torch_total_bytes
    ti = find_gpu("3080 ti")
    assert ti.torch_total_bytes is None and 11.4 * GIB < ti.usable_bytes < 11.8 * GIB and "12288 MiB" in ti.usable_basis


def test_link_rates() -> None:
    """PCIe 3.0 x16 is 15.75 GB/s each way, 4.0 twice that; x8 half."""
    three, four, narrow = (pcie_copy_bytes_per_second(*link) for link in ((3, 16), (4, 16), (4, 8)))
    assert three == pytest.approx(0.8 * 15.75e9, rel=1e-3) and four == pytest.approx(2 * (three or 0)) and narrow == three
    assert pcie_copy_bytes_per_second(None, 16) is pcie_copy_bytes_per_second(9, 16) is pcie_copy_bytes_per_second(4, None) is None
    assert find_gpu("3080 ti laptop").host_to_device_bytes_per_second is None, "laptops differ"


def test_importing_reads_no_file_and_no_planner() -> None:
    code = "import sys, llamamath.profiles.gpus, llamamath.profiles.gpu_names; print(*sorted(sys.modules))"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "tomllib" not in modules and not any(name.startswith("llamamath.planner") for name in modules)
