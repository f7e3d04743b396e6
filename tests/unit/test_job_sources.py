"""A flag beats the file, the file the recipe, the recipe the default; and each value knows where it came from."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamamath.cli.job_sources import DEFAULT_GENERATIONS, Layer, combine, file_layer, flag_layer, flag_of, recipe_stages
from llamamath.errors import FieldError, UsageError
from llamamath.planner.job_files.job_file import load_job
from llamamath.profiles.recipes import find_recipe

MODEL = Layer(origin="argument", values={"model": "llama-3.2-1b"})
NONE = Layer(origin="flag", values={})


def test_defaults_make_a_grpo_job_that_holds_one_group() -> None:
    found = combine([NONE, MODEL])
    assert found.job.method == "grpo" and found.job.num_generations == DEFAULT_GENERATIONS == found.job.generation_batch_size
    assert set(found.origins.values()) == {"argument", "default"} and found.origins["model"] == "argument"


@given(batch=st.integers(1, 64), group=st.integers(2, 64))
def test_any_batch_and_group_go_together_by_default(batch: int, group: int) -> None:
    job = combine([flag_layer({"batch": batch, "num_generations": group}), MODEL]).job
    assert job.generation_batch_size % group == 0


def test_a_file_has_to_say_method_and_lengths(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("model: llama-3.2-1b\nmethod: sft\n")
    with pytest.raises(FieldError, match="max_length"):
        combine([NONE, file_layer(str(path))])
    path.write_text("model: llama-3.2-1b\nmax_length: 5\n")
    with pytest.raises(FieldError, match="method"):
        combine([NONE, file_layer(str(path))])


def test_a_file_alone_means_what_load_job_says(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("model: llama-3.2-1b\nmethod: dpo\nmax_length: 64\nlora: {r: 4}\nrollout: {engine: vllm}\noffload: [checkpoints]\n")
    assert combine([NONE, file_layer(str(path))]).job == load_job(path)
    path.write_text("model: llama-3.2-1b\nmethod: sft\nmax_length: 64\nquantization: none\nlora: null\n")
    assert combine([NONE, file_layer(str(path))]).job == load_job(path)


def test_layers_beat_each_other_field_by_field() -> None:
    file = Layer(origin="file job.yaml", values={"method": "sft", "max_length": 64, "lora": {"r": 8, "lora_dropout": 0.1}})
    recipe = Layer(origin="recipe x", values={"lora": {"r": 32, "lora_alpha": 7}, "optim": "sgd"})
    found = combine([flag_layer({"lora_r": 4}), MODEL, file, recipe])
    lora = found.job.lora
    assert lora is not None and (lora.r, lora.lora_dropout, lora.lora_alpha) == (4, 0.1, 7)
    keys = ("lora.r", "lora.lora_dropout", "lora.lora_alpha", "optim", "dtype")
    assert [found.origins[key] for key in keys] == ["flag", "file job.yaml", "recipe x", "recipe x", "default"]


def test_no_lora_beats_lora_and_the_other_way_round() -> None:
    recipe = Layer(origin="recipe x", values={"lora": {"r": 32}, "quantization": "nf4-dq"})
    full = combine([flag_layer({"full": True}), MODEL, recipe])
    assert full.job.lora is None and full.job.quantization == "none" and full.origins["lora"] == "flag"
    bare = Layer(origin="file f", values={"lora": None, "quantization": "none", "method": "sft", "max_length": 8})
    adapted = combine([flag_layer({"lora_r": 8}), MODEL, bare])
    assert adapted.job.lora is not None and adapted.job.lora.r == 8


def test_words_with_commas_and_none() -> None:
    values = flag_layer({"target_modules": "q_proj, v_proj", "offload": "checkpoints,optimizer"}).values
    assert values == {"lora.target_modules": ["q_proj", "v_proj"], "offload": ["checkpoints", "optimizer"]}
    assert flag_layer({"offload": "none"}).values == {"offload": []}
    assert flag_layer({"packed": True, "no_checkpointing": True}).values == {"padding": False, "gradient_checkpointing": False}


def test_flags_have_names() -> None:
    assert flag_of("lora.r") == "--lora-r" and flag_of("attn_implementation") == "--attn" and flag_of("unheard") == "unheard"


def test_a_recipes_stages_take_the_flags_they_can() -> None:
    recipe = find_recipe("gsm8k-3b")
    sft, grpo = (found.job for _, found in recipe_stages(recipe, [flag_layer({"max_length": 99, "num_generations": 4, "lora_r": 2})]))
    assert sft.max_length == 99 and grpo.num_generations == 4
    assert sft.lora is not None and grpo.lora is not None and (sft.lora.r, grpo.lora.r) == (2, 2)
    with pytest.raises(UsageError, match="--max-length"):
        recipe_stages(find_recipe("llama-math-1b"), [flag_layer({"max_length": 99})])
