"""The emitted arguments are accepted by the libraries they are for: TRL 1.16, transformers 5.23, PEFT 0.21, bitsandbytes 0.50."""

from __future__ import annotations

import itertools

import pytest

from llamamath.errors import UsageError
from llamamath.planner.job import OPTIMIZERS, Job
from llamamath.planner.job_files.job_file import parse_job
from llamamath.planner.model_files.config_file import resolve_model
from llamamath.planner.trl.arguments import TrlArguments, stage_settings, trl_arguments
from llamamath.planner.trl.text import python_text
from llamamath.profiles.recipes import recipes

pytest.importorskip("trl")
pytestmark = pytest.mark.filterwarnings("ignore")  # the libraries' own

MODEL = "llama-3.2-1b"
SFT = {"model": MODEL, "method": "sft", "max_length": 512}
DPO = {"model": MODEL, "method": "dpo", "max_length": 512}
GRPO = {
    "model": MODEL,
    "method": "grpo",
    "max_prompt_length": 64,
    "max_completion_length": 64,
    "num_generations": 4,
    "gradient_accumulation_steps": 8,
}
JOBS = [
    SFT,
    {**SFT, "padding": False},
    {**SFT, "padding": False, "attn_implementation": "flash_attention_2"},
    {**SFT, "quantization": "none", "lora": None},
    {**SFT, "quantization": "int8"},
    {**SFT, "quantization": "nf4", "kbit_preparation": True, "lora": {"use_dora": True, "target_modules": ["q_proj"]}},
    {**SFT, "gradient_checkpointing": False},
    {**SFT, "offload": ["checkpoints"], "per_device_eval_batch_size": 2},
    {**SFT, "dtype": "float32", "mixed_precision": False, "quantization": "none"},
    {**DPO, "beta": 0.3, "precompute_ref_log_probs": True},
    {**DPO, "padding": False, "attn_implementation": "flash_attention_2"},
    GRPO,
    {**GRPO, "beta": 0.04, "num_iterations": 2, "steps_per_generation": 4, "offload": ["checkpoints"]},
    {**GRPO, "per_device_eval_batch_size": 8},
    *({**SFT, "optim": name} for name in OPTIMIZERS),
]


def built(arguments: TrlArguments) -> dict[str, object]:
    """The variables of the emitted text after running it."""
    variables: dict[str, object] = {}
    exec(compile(python_text(arguments, "test"), "emitted", "exec"), variables)  # noqa: S102
    return variables


def of(job: Job, **settings: object) -> TrlArguments:
    return trl_arguments(job, resolve_model(job.model), cpu=True, settings=settings)


@pytest.mark.parametrize("values", JOBS, ids=lambda values: " ".join(f"{key}={value}" for key, value in values.items() if key != "model"))
def test_the_libraries_take_the_arguments(values: dict[str, object], tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    job = parse_job(values)
    variables = built(of(job))
    args = variables["args"]
    assert args.per_device_train_batch_size == job.per_device_train_batch_size  # type: ignore[attr-defined]
    assert args.gradient_checkpointing is job.gradient_checkpointing  # type: ignore[attr-defined]
    assert args.optim == job.optim or (job.optim, args.optim) == ("paged_adamw", "paged_adamw_32bit")  # type: ignore[attr-defined]
    assert args.bf16 is (job.mixed_precision is not False)  # type: ignore[attr-defined]
    if job.gradient_checkpointing:
        offload = (args.gradient_checkpointing_kwargs or {}).get("offload", False)  # type: ignore[attr-defined]
        assert offload is ("checkpoints" in job.offload)
    assert ("quantization_config" in variables) == (job.quantization != "none")
    assert ("peft_config" in variables) == (job.lora is not None)
    assert callable(variables["make_trainer"])


def test_grpo_keeps_batch_group_and_rollout() -> None:
    args = built(of(parse_job({**GRPO, "steps_per_generation": 4, "beta": 0.04})))["args"]
    assert (args.num_generations, args.steps_per_generation, args.generation_batch_size, args.beta) == (4, 4, 4, 0.04)  # type: ignore[attr-defined]
    assert args.max_completion_length == 64  # type: ignore[attr-defined]


def test_every_recipe_with_its_learning_rate() -> None:
    for recipe, stage in itertools.chain.from_iterable(((recipe, stage) for stage in recipe.stages) for recipe in recipes()):
        job = parse_job(stage.job, source=recipe.name)
        args = built(of(job, **stage_settings(stage)))["args"]
        assert args.learning_rate == stage.learning_rate  # type: ignore[attr-defined]


def test_lora_and_quantization_are_the_jobs() -> None:
    variables = built(
        of(parse_job({**SFT, "quantization": "nf4", "lora": {"r": 8, "lora_alpha": 32, "target_modules": ["q_proj", "v_proj"]}}))
    )
    lora, quantization = variables["peft_config"], variables["quantization_config"]
    assert (lora.r, lora.lora_alpha, lora.target_modules) == (8, 32, {"q_proj", "v_proj"})  # type: ignore[attr-defined]
    assert quantization.load_in_4bit and not quantization.bnb_4bit_use_double_quant  # type: ignore[attr-defined]


def test_what_cannot_be_expressed_is_said() -> None:
    arguments = of(parse_job({**GRPO, "padding": False, "offload": ["weights"]}))
    words = " ".join(arguments.unexpressed)
    assert "offload: weights" in words and "max_prompt_length" in words and "padding" in words
    assert "# Not expressed below: offload: weights" in python_text(arguments, "test")


def test_another_stack_is_refused() -> None:
    with pytest.raises(UsageError, match="transformers-5"):
        of(parse_job({**SFT, "stack": "transformers-5"}))


def test_a_model_name_cannot_break_the_text() -> None:
    from dataclasses import replace

    arguments = replace(of(parse_job(SFT)), model_name='a"); import os; ("\\')
    built(arguments)
