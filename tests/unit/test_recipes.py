"""Recipes: every stage is a valid job, every figure has a place in the paper, and the papers' own numbers are kept."""

from typing import Any

import pytest

from llamamath.errors import UnknownNameError
from llamamath.planner.job import JOB_FIELDS, Lora
from llamamath.planner.job_files.job_file import parse_job
from llamamath.profiles.recipes import Recipe, find_recipe, recipe_names, recipes

EXPECTED = {
    "llama-math-1b",
    "llama-math-3b",
    "llama-math-11b",
    "llama-math-90b",
    "hle-vision-11b",
    "gsm8k-3b",
    "gamer-1.5b",
    "restore-dpo",
}
ALL = recipes()


def test_names_are_unique_and_complete() -> None:
    assert set(recipe_names()) == EXPECTED
    names = [name for recipe in ALL for name in (recipe.name, *recipe.aliases)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("recipe", ALL, ids=lambda recipe: recipe.name)
def test_every_stage_is_a_valid_job_and_complete(recipe: Recipe) -> None:
    assert recipe.stages
    for stage in recipe.stages:
        assert set(stage.job) <= set(JOB_FIELDS)
        job = parse_job(stage.job, source=recipe.name)
        assert job.method == stage.name
        assert job.model == recipe.base_model
        assert isinstance(stage.job["lora"], dict) and "dtype" in stage.job["lora"]
        assert 0 < stage.learning_rate < 1e-2 and stage.num_train_epochs > 0
        assert sum(data.num_samples for data in stage.datasets) == stage.num_samples
        assert all(data.url.startswith("https://") and data.licence for data in stage.datasets)
        assert bool(stage.rewards) == (job.method == "grpo")
        assert {reward.name for reward in stage.rewards} <= {"correctness", "format", "cosine"}
        assert (stage.temperature is not None) == (job.method == "grpo")
        if stage.starts_from:
            assert stage.starts_from in [earlier.name for earlier in recipe.stages]


@pytest.mark.parametrize("recipe", ALL, ids=lambda recipe: recipe.name)
def test_every_recipe_says_where_it_comes_from_and_what_is_ours(recipe: Recipe) -> None:
    assert recipe.source and recipe.licence and recipe.gpu and recipe.accessed.startswith("20")
    assert recipe.claims and recipe.open and recipe.contradictions
    assert all(claim.location and claim.basis and claim.unit for claim in recipe.claims)
    assert all(item.topic and item.choice and item.reason for item in recipe.open)
    assert all(item.claim and item.finding and item.source for item in recipe.contradictions)


@pytest.mark.parametrize(
    ("name", "gpu_gb", "host_gb", "batch", "tokens"),
    [  # LLaMA-Math proposal, Table 4
        ("llama-math-1b", 3.5, 40, 2, 8_000),
        ("llama-math-3b", 5.8, 48, 1, 8_000),
        ("llama-math-11b", 12.0, 80, 1, 128_000),
        ("llama-math-90b", 24.0, 120, 1, 128_000),
    ],
)
def test_table_4_of_the_proposal(name: str, gpu_gb: float, host_gb: float, batch: int, tokens: int) -> None:
    recipe = find_recipe(name)
    gpu, host = recipe.claim("gpu_memory"), recipe.claim("host_memory")
    assert gpu is not None and host is not None
    assert (gpu.value_bytes, host.value_bytes) == (gpu_gb * 1e9, host_gb * 1e9)
    job = parse_job(recipe.stages[0].job)
    assert (job.per_device_train_batch_size, job.sequence_length) == (batch, tokens)
    assert recipe.stages[0].num_samples == 24_700
    assert job.num_generations == 4 and job.quantization == "nf4-dq"


PAPER_VALUES: list[tuple[str, int, dict[str, Any]]] = [
    (
        "hle-vision-11b",
        0,
        {"per_device_train_batch_size": 2, "max_prompt_length": 32, "max_completion_length": 32, "num_generations": 2, "beta": 0.1},
    ),
    ("gsm8k-3b", 0, {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4, "max_length": 512, "optim": "paged_adamw_32bit"}),
    ("gsm8k-3b", 1, {"num_generations": 8, "beta": 0.04, "quantization": "nf4-dq"}),
    ("gamer-1.5b", 0, {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4, "dtype": "float16", "quantization": "none"}),
    ("restore-dpo", 0, {"method": "dpo"}),
]


@pytest.mark.parametrize(("name", "stage", "values"), PAPER_VALUES, ids=lambda value: str(value)[:20])
def test_the_papers_hyperparameters_are_kept(name: str, stage: int, values: dict[str, Any]) -> None:
    job = parse_job(find_recipe(name).stages[stage].job)
    assert {key: getattr(job, key) for key in values} == values


def test_the_papers_adapters_rates_and_rewards_are_kept() -> None:
    hle, gamer, gsm8k = (find_recipe(name) for name in ("hle-vision-11b", "gamer-1.5b", "gsm8k-3b"))
    assert parse_job(hle.stages[0].job).lora == Lora(r=4, lora_alpha=32, lora_dropout=0.05, target_modules=("q_proj", "v_proj"))
    attention = ("q_proj", "k_proj", "v_proj", "o_proj")
    assert parse_job(gamer.stages[0].job).lora == Lora(r=16, lora_alpha=32, target_modules=attention, dtype="float32")
    first, second = (parse_job(stage.job).lora for stage in gsm8k.stages)
    assert first is not None and second is not None
    assert (first.r, first.lora_alpha, first.lora_dropout, second.lora_alpha) == (32, 64, 0.1, 32)
    assert [stage.learning_rate for stage in gsm8k.stages] == [1e-4, 3e-5]
    assert [stage.num_samples for stage in gsm8k.stages] == [7_473, 1_000]
    assert gsm8k.stages[1].starts_from == "sft"
    assert [(reward.name, reward.weight) for reward in gsm8k.stages[1].rewards] == [("correctness", 1.0), ("format", 0.2)]
    assert [(reward.name, reward.weight) for reward in gamer.stages[0].rewards] == [("correctness", 1.0), ("format", 0.5)]
    assert [reward.name for reward in hle.stages[0].rewards] == ["cosine"]
    assert (hle.stages[0].temperature, hle.stages[0].num_train_epochs, hle.stages[0].num_samples) == (0.7, 2.0, 888)
    assert gsm8k.claim("gpu_memory") is None


def test_found_by_name_and_alias_in_any_case() -> None:
    assert find_recipe("LLaMA-Math-90B ").name == "llama-math-90b"
    assert find_recipe("gamer").name == "gamer-1.5b"
    with pytest.raises(UnknownNameError) as caught:
        find_recipe("llama-math-9b")
    assert "llama-math-90b" in caught.value.closest


def test_changing_a_found_recipe_leaves_the_next_one_alone() -> None:
    job = find_recipe("gamer").stages[0].job
    assert isinstance(job, dict)
    job["lora"]["r"] = 1
    again = find_recipe("gamer").stages[0].job["lora"]
    assert isinstance(again, dict) and again["r"] == 16
