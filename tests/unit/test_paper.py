"""The papers' equations give the papers' numbers, and the planner's answers to them are arithmetic."""

import pytest

from llamamath.errors import FieldError
from llamamath.planner.architecture import Architecture, VisionArchitecture
from llamamath.planner.estimate import Estimate, HostMemory, Peak, PhaseMemory
from llamamath.planner.job_files.job_file import parse_job
from llamamath.planner.paper import (
    explain_choices,
    explain_contradictions,
    explain_difference,
    paper_figures,
    paper_memory,
    pilot_memory,
    proposal_memory,
)
from llamamath.profiles.recipes import Recipe, find_recipe, recipes

VISION = VisionArchitecture(
    hidden_size=1280,
    intermediate_size=5120,
    num_hidden_layers=32,
    num_global_layers=8,
    attention_heads=16,
    image_size=560,
    patch_size=14,
    num_channels=3,
    max_num_tiles=4,
    max_aspect_ratio_id=8,
    intermediate_layers_indices=(3, 7, 15, 23, 30),
)


def decoder(family: str, hidden: int, inner: int, layers: int, heads: int, kv_heads: int, vocabulary: int, head_dim: int) -> Architecture:
    vision = family == "mllama"
    return Architecture(
        family=family,
        name=family,
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        tie_word_embeddings=not vision,
        max_position_embeddings=131_072,
        attention_bias=family == "qwen2",
        cross_attention_layers=tuple(range(3, layers, 5)) if vision else (),
        vision=VISION if vision else None,
    )


LLAMA_1B = decoder("llama", 2048, 8192, 16, 32, 8, 128_256, 64)
LLAMA_3B = decoder("llama", 3072, 8192, 28, 24, 8, 128_256, 128)
LLAMA_11B = decoder("mllama", 4096, 14_336, 40, 32, 8, 128_256, 128)
LLAMA_90B = decoder("mllama", 8192, 28_672, 100, 64, 8, 128_256, 128)
QWEN_MATH = decoder("qwen2", 1536, 8960, 28, 12, 2, 151_936, 128)
ARCHITECTURES = {
    "meta-llama/Llama-3.2-1B-Instruct": LLAMA_1B,
    "meta-llama/Llama-3.2-3B": LLAMA_3B,
    "meta-llama/Llama-3.2-3B-Instruct": LLAMA_3B,
    "meta-llama/Llama-3.2-11B-Vision-Instruct": LLAMA_11B,
    "meta-llama/Llama-3.2-90B-Vision-Instruct": LLAMA_90B,
    "Qwen/Qwen2.5-Math-1.5B": QWEN_MATH,
}
ESTIMATE = Estimate(
    phases=(PhaseMemory(name="generate", base_weights_bytes=7_000_000_000, kv_cache_bytes=2**30, logits_bytes=2**20),),
    peak=Peak(phase="generate", allocated_bytes=8 * 2**30, reserved_bytes=8 * 2**30, device_bytes=9 * 2**30, low_bytes=0, high_bytes=0),
    host=HostMemory(peak_bytes=5_000_000_000),
    trainable_parameters=1,
    total_parameters=2,
)


def figures(name: str) -> dict[str, float]:
    recipe = find_recipe(name)
    return paper_figures(recipe, parse_job(recipe.stages[-1].job), ARCHITECTURES[recipe.base_model])


def test_equation_6_gives_exactly_the_pilots_7_168_gb() -> None:
    value = pilot_memory()
    assert value.terms == {"base_weights": 5_500_000_000, "lora": 8_000_000, "overhead": 1_500_000_000, "dataset": 160_000_000}
    assert value.total_bytes == 7_168_000_000
    claim = find_recipe("hle-vision-11b").claim("gpu_memory")
    assert claim is not None and claim.value_bytes == value.total_bytes


def test_equation_4_is_the_sum_of_its_terms() -> None:
    value = proposal_memory(
        num_parameters=1_000,
        quantization_bits=4,
        lora_rank=2,
        adapted_layers=3,
        lora_bytes_per_rank_and_layer=5,
        optimizer_bytes_per_parameter=8,
        optimizer_parameters=7,
        gradient_bytes_per_parameter=2,
        gradient_parameters=11,
        activation_bytes_per_token=13,
        sequence_length=17,
        batch_size=19,
    )
    assert value.terms == {"base_weights": 500, "lora": 30, "optimizer": 56, "gradient": 22, "activation": 13 * 17 * 19}
    assert value.total_bytes == 500 + 30 + 56 + 22 + 13 * 17 * 19


def test_equation_4_of_a_job() -> None:
    job = parse_job(find_recipe("llama-math-1b").stages[0].job)
    value = paper_memory(job, LLAMA_1B)
    trainable = 11_272_192  # rank 16 on all linears of Llama-3.2-1B
    assert value.terms == {
        "base_weights": 1_235_814_400 // 2,
        "lora": 2 * trainable,
        "optimizer": 8 * trainable,
        "gradient": 2 * trainable,
        "activation": 2 * 2048 * 16 * 8_000 * 2,
    }


def test_the_equations_follow_precision_and_full_fine_tuning() -> None:
    full = parse_job({"model": "m", "method": "sft", "max_length": 10, "quantization": "none", "lora": None})
    terms = paper_memory(full, LLAMA_1B).terms
    assert terms["base_weights"] == 2 * 1_235_814_400 and terms["lora"] == 0
    assert terms["optimizer"] == 8 * 1_235_814_400 and terms["gradient"] == 2 * 1_235_814_400
    assert paper_memory(full, LLAMA_1B, "eq. 6").terms["lora"] == 0
    job = parse_job(find_recipe("hle-vision-11b").stages[0].job)
    assert paper_memory(job, LLAMA_11B, "eq. 6").terms["base_weights"] == 10_670_220_835 // 2
    with pytest.raises(FieldError):
        paper_memory(full, LLAMA_1B, "eq. 5")


def test_the_gamers_18_million_are_all_linears_not_attention() -> None:
    found = figures("gamer-1.5b")
    assert (found["lora_attention"], found["lora_all_linear"]) == (4_358_144, 18_464_768)
    told = " ".join(explain_contradictions(find_recipe("gamer-1.5b"), QWEN_MATH))
    assert "4,358,144" in told and "18,464,768" in told and "14 GB does not fit" in told


def test_90b_does_not_fit_24_gb_by_its_weights_its_checkpoints_and_its_cache() -> None:
    found = figures("llama-math-90b")
    assert found["quantized_gb"] == pytest.approx(44.6, abs=0.1)
    assert found["checkpoints_gb"] == 2 * 8192 * 128_000 * 100 / 1e9
    assert found["kv_row_gb"] == 2 * 80 * 1024 * 128_000 * 2 / 1e9
    spacing, limit = found["checkpoint_spacing"], found["host_claim_gb"]
    assert found["checkpoints_gb"] / spacing + found["quantized_gb"] <= limit
    assert found["checkpoints_gb"] / (spacing - 1) + found["quantized_gb"] > limit
    told = " ".join(explain_contradictions(find_recipe("llama-math-90b"), LLAMA_90B))
    assert "210 GB" in told and "44.6 GB" in told and "41.9 GB" in told


def test_the_pilots_weights_alone_exceed_its_total() -> None:
    found = figures("hle-vision-11b")
    assert found["weights_gb"] > 7.168
    assert found["equation_weights_gb"] == 5.5


def test_two_points_on_gsm8k_are_one_standard_error() -> None:
    n, before, after = 1319, 576 / 1319, 601 / 1319
    error = (before * (1 - before) / n + after * (1 - after) / n) ** 0.5
    assert 100 * error == pytest.approx(1.9, abs=0.05) and 100 * (after - before) == pytest.approx(1.9, abs=0.05)
    assert "1.9 points" in " ".join(explain_contradictions(find_recipe("gsm8k-3b"), LLAMA_3B))


@pytest.mark.parametrize("recipe", recipes(), ids=lambda recipe: recipe.name)
def test_every_recipe_is_explained_without_placeholders(recipe: Recipe) -> None:
    architecture = ARCHITECTURES[recipe.base_model]
    for stage in recipe.stages:
        sentences = explain_difference(recipe, ESTIMATE, architecture, stage.name)
        sentences += [item.reason for item in explain_choices(recipe, architecture, stage.name)]
        assert all(text and "{" not in text and "nan" not in text for text in sentences)
        assert len(sentences) > len(recipe.contradictions) + len(recipe.open)


def test_the_difference_names_what_the_equation_has_no_term_for() -> None:
    told = explain_difference(find_recipe("hle-vision-11b"), ESTIMATE, LLAMA_11B)
    assert "7.168 GB of GPU memory (Section 3.2, eq. 6" in told[0] and "9.66 GB (9.00 GiB)" in told[0] and "1.3 times" in told[0]
    assert "= 7.168 GB" in told[1]
    assert "logits 1 MiB, kv cache 1.00 GiB, allocator slack and CUDA context 1.00 GiB" in told[2]
    assert "no GPU memory figure" in explain_difference(find_recipe("gsm8k-3b"), ESTIMATE, LLAMA_3B)[0]
