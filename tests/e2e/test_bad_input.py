"""Wrong input ends with 2, names what is wrong and what is allowed or near, and never shows a traceback."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import Answer

from llamamath.profiles.models import find_model

Call = Callable[..., Answer]
ON = ("--gpu", "rtx3060")


def config(**changes: object) -> dict[str, object]:
    profile = find_model("llama-3.2-1b")
    assert profile is not None
    return {**profile.config, **changes}


TABLE: list[tuple[tuple[str, ...], tuple[str, ...]]] = [
    (("fit", "lama-3.2-1b", *ON), ("unknown model", "meta-llama/Llama-3.2-1B")),
    (("fit", "llama-3.2-1b", "--gpu", "rtx3099"), ("unknown GPU", "closest", "3090")),
    (("fit", "llama-3.2-1b", "--gpu", "12"), ("12GiB",)),
    (("fit", "llama-3.2-1b", *ON, "--batch", "-1"), ("per_device_train_batch_size", "-1", "from 1")),
    (("fit", "llama-3.2-1b", *ON, "--batch", "four"), ("--batch", "integer")),
    (("fit", "llama-3.2-1b", *ON, "--beta", "nan"), ("beta", "nan")),
    (("fit", "llama-3.2-1b", *ON, "--lora-dropout", "1"), ("lora.lora_dropout",)),
    (("fit", "llama-3.2-1b", *ON, "--quantization", "nf5"), ("quantization", "nf4")),
    (("fit", "llama-3.2-1b", *ON, "--offload", "everything"), ("offload", "checkpoints")),
    (("fit", "llama-3.2-1b", *ON, "--vram", "10"), ("--vram", "12GiB")),
    (("fit", "llama-3.2-1b", *ON, "--vram", "-1GiB"), ("--vram",)),
    (("fit", "llama-3.2-1b", *ON, "--max", "speed"), ("max", "context, batch, group")),
    (("fit", "llama-3.2-1b", *ON, "--method", "sft", "--max", "group"), ("max", "grpo")),
    (("fit", "llama-3.2-1b", *ON, "--max-length", "512"), ("--max-length", "grpo", "--max-completion-length")),
    (("fit", "llama-3.2-1b", *ON, "--method", "sft", "--num-generations", "4"), ("--num-generations", "sft")),
    (("fit", "llama-3.2-1b", *ON, "--padding", "--packed"), ("--padding and --packed",)),
    (("fit", "llama-3.2-1b", *ON, "--full", "--lora-r", "8"), ("--full", "--lora-r")),
    (("fit", "llama-3.2-1b", *ON, "--target-modules", "no_such_proj"), ("target_modules", "no_such_proj")),
    (("fit", "llama-3.2-1b", *ON, "--memory-model", "guess"), ("--memory-model", "paper")),
    (("fit", "--recipe", "lama-math-1b", *ON), ("unknown recipe", "llama-math-1b")),
    (("fit", "--recipe", "llama-math-1b", "--job", "job.yaml", *ON), ("--job and --recipe",)),
    (("fit", "--recipe", "llama-math-1b", "--max-length", "5", *ON), ("--max-length", "llama-math-1b")),
    (("fit", "--job", "missing.yaml", *ON), ("missing.yaml", "no such file")),
    (("fit", "--jobs", "missing.jsonl", *ON), ("missing.jsonl",)),
    (("fit", "--jobs", "jobs.jsonl", "--batch", "2", *ON), ("--jobs", "flag")),
    (("fit", "--plan", "missing.yaml", *ON), ("missing.yaml",)),
    (("fit", "--job", "lr.yaml", *ON), ("lr",)),
    (("fit", "--job", "nan.yaml", *ON), ("beta", "nan")),
    (("fit", "--job", "negative.yaml", *ON), ("per_device_train_batch_size", "-4")),
    (("fit", "--job", "text.yaml", *ON), ("max_length", "'3e3'")),
    (("fit", "--job", "list.yaml", *ON), ("list.yaml", "mapping")),
    (("fit", "--job", "half.yaml", *ON), ("half.yaml", "not valid YAML")),
    (("fit", "--job", "bytes.yaml", *ON), ("bytes.yaml", "UTF-8")),
    (("fit", "./truncated", *ON), ("truncated", "config.json")),
    (("fit", "./family", *ON), ("model_type", "bert")),
    (("fit", "./lies", *ON), ("num_hidden_layers",)),
    (("fit", "./fewer", *ON), ("num_hidden_layers", "16")),
    (("fit", "./empty", *ON), ("empty", "config.json")),
    (("plan", "--objective", "speed"), ("objective", "throughput")),
    (("plan", "--hours", "nan"), ("--hours", "nan")),
    (("plan", "--samples", "0"), ("num_samples", "0")),
    (("plan", "--emit", "axolotl"), ("--emit", "trl")),
    (("plan", "--stage", "sft"), ("--stage", "recipe")),
    (("plan", "--recipe", "gsm8k-3b", "--stage", "dpo"), ("--stage", "sft, grpo")),
    (("plan", "--token-lengths", "words.txt"), ("words.txt", "line 2")),
    (("plan", "llama-3.2-1b", "--gpu", "8GiB", "-o", "no/such/folder/plan.yaml"), ("no/such/folder/plan.yaml",)),
    (("plan", "llama-3.2-1b", "-o", "-", "--json"), ("-o -", "--json")),
    (("plan", "llama-3.2-1b", "--emit", "trl", "--json"), ("--emit and --json",)),
    (("plan", "nobody/nothing"), ("nobody/nothing",)),
    (("profiles", "rtx3099"), ("unknown profile", "3090")),
    (("profiles", "gpus", "rtx3090", "more"), ("one name at a time",)),
]


@pytest.fixture
def files(tmp_path: Path) -> None:
    """What the table names, in the folder where the commands run."""
    good = "model: llama-3.2-1b\nmethod: sft\nmax_length: 512\n"
    (tmp_path / "lr.yaml").write_text(good + "lr: 3e-4\n")
    (tmp_path / "nan.yaml").write_text(good + "beta: .nan\n")
    (tmp_path / "negative.yaml").write_text(good + "per_device_train_batch_size: -4\n")
    (tmp_path / "text.yaml").write_text(good.replace("512", "'3e3'"))
    (tmp_path / "list.yaml").write_text("- model\n")
    (tmp_path / "half.yaml").write_text("model: [llama\n")
    (tmp_path / "bytes.yaml").write_bytes(b"model: \xff\xfe\n")
    (tmp_path / "words.txt").write_text("100\nhundred\n")
    (tmp_path / "jobs.jsonl").write_text("{}\n")
    for name in ("truncated", "family", "lies", "fewer", "empty"):
        (tmp_path / name).mkdir()
    (tmp_path / "truncated" / "config.json").write_text(json.dumps(config())[:-40])
    (tmp_path / "family" / "config.json").write_text(json.dumps(config(model_type="bert")))
    (tmp_path / "lies" / "config.json").write_text(json.dumps(config(num_hidden_layers=-3)))
    (tmp_path / "fewer" / "config.json").write_text(json.dumps(config(num_hidden_layers=8)))
    weights = {f"model.layers.{layer}.mlp.up_proj.weight": "model.safetensors" for layer in range(16)}
    index = {"metadata": {"total_size": 2_471_645_608}, "weight_map": weights}
    (tmp_path / "fewer" / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(("arguments", "words"), TABLE, ids=lambda value: " ".join(value))
def test_bad_input(call: Call, files: None, arguments: tuple[str, ...], words: tuple[str, ...]) -> None:
    answer = call(*arguments)
    assert answer.code == 2, answer.err
    assert "Traceback" not in answer.err and "internal error" not in answer.err
    assert answer.err.startswith("error: ")
    for word in words:
        assert word in answer.err
    document = json.loads(call(*arguments, "--json").out)
    assert document["error"]["exit_code"] == 2 and document["error"]["message"]


NONSENSE: list[tuple[str, str, str]] = [
    ("per_device_train_batch_size: 8", "per_device_train_batch_size: eight", "per_device_train_batch_size"),
    ("method: grpo", "method: ppo", "method"),
    ("schema_version: 1", "schema_version: 99", "schema_version"),
    ("max_completion_length: 1024", "max_completion_length: -5", "max_completion_length"),
    ("job:", "jib:", "jib"),
    ("num_generations: 8", "num_generations: 7", "num_generations"),
    ("lora: {r: 16", "lora: {r: .inf", "lora.r"),
    ("high_bytes: ", "high_bytes: -", "high_bytes"),
]


@pytest.mark.parametrize(("old", "new", "field"), NONSENSE, ids=lambda value: value.strip())
def test_a_plan_edited_into_nonsense(call: Call, tmp_path: Path, old: str, new: str, field: str) -> None:
    assert call("plan", "llama-3.2-1b-instruct", "--gpu", "8GiB", "--batch", "8").code == 0
    text = (tmp_path / "plan.yaml").read_text()
    assert old in text
    (tmp_path / "plan.yaml").write_text(text.replace(old, new, 1))
    answer = call("fit", "--plan", "plan.yaml", "--gpu", "8GiB")
    assert answer.code == 2 and field in answer.err and "Traceback" not in answer.err


def test_control_characters_do_not_reach_the_terminal(call: Call) -> None:
    answer = call("fit", "--job", "a\x1b[31mb.yaml", *ON)
    assert answer.code == 2 and "\x1b" not in answer.err
