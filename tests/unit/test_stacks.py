"""Stacks: every row is complete and sourced, and the bytes per logit are those of published and counted runs."""

import dataclasses

import pytest

from llamamath.errors import UnknownNameError
from llamamath.planner.job import LOSSES, METHODS, STACKS
from llamamath.planner.stack import LogitsCopies, LogitsPath, Stack, find_stack, logits_copies, stack_names
from llamamath.profiles.toml_data import read_toml


def test_a_job_file_knows_the_stacks_of_the_design_and_no_other() -> None:
    assert STACKS == ("trl-1.16", "transformers-5", "transformers-4.48", "transformers-4.45")
    assert stack_names()[: len(STACKS)] == STACKS


@pytest.mark.parametrize("name", stack_names())
def test_every_row_is_complete_and_sourced(name: str) -> None:
    stack = find_stack(name)
    assert stack.name == name
    assert set(stack.methods) <= set(METHODS) and set(stack.losses) <= set(LOSSES)
    assert stack.default_loss in stack.losses
    assert stack.source and stack.accessed and stack.versions
    row = next(row for row in read_toml("stacks.toml")["stack"] if row["name"] == name)
    habits = {field.name for field in dataclasses.fields(Stack)}
    assert set(row) - {"sources"} == habits
    assert set(row["sources"]) <= habits
    assert all(text.strip() for text in row["sources"].values())
    assert {"full_loss", "quantized_adapter_dtype", "use_reentrant_default"} <= set(row["sources"])


@pytest.mark.parametrize(
    ("path", "dtype_bytes", "batch_size", "forward"),
    [
        # facts of the published A100 runs: 14 bytes per logit with transformers 4.48, 12 with 4.45
        (LogitsPath.HF448_FULL, 2, 4, 14),
        (LogitsPath.HF445_FULL, 2, 4, 12),
        # counted op by op on a CPU, torch 2.13, transformers 5.23
        (LogitsPath.HF5_FULL, 2, 4, 10),
        (LogitsPath.HF5_FULL, 2, 1, 10),
        (LogitsPath.HF448_FULL, 2, 1, 10),
        (LogitsPath.HF445_FULL, 2, 1, 8),
        # a float32 model needs no float32 copy
        (LogitsPath.HF5_FULL, 4, 4, 8),
        (LogitsPath.HF448_FULL, 4, 4, 12),
        (LogitsPath.HF445_FULL, 4, 4, 12),
    ],
)
def test_bytes_per_logit_of_a_whole_logits_loss(path: LogitsPath, dtype_bytes: int, batch_size: int, forward: int) -> None:
    copies = logits_copies(path, logits_dtype_bytes=dtype_bytes, batch_size=batch_size)
    assert copies == LogitsCopies(end_of_forward=forward, in_backward=12)


def test_chunked_losses_hold_no_logits() -> None:
    for path in (LogitsPath.TRL_CHUNKED, LogitsPath.LIGER):
        assert logits_copies(path, logits_dtype_bytes=2, batch_size=4) is None


@pytest.mark.parametrize(
    ("stack", "loss", "path"),
    [
        ("trl-1.16", "chunked", "trl_chunked"),
        ("trl-1.16", "liger", "trl_chunked"),
        ("trl-1.16", "full", "hf5_full"),
        ("transformers-5", "full", "hf5_full"),
        ("transformers-5", "liger", "liger"),
        ("transformers-4.48", "full", "hf448_full"),
        ("transformers-4.45", "full", "hf445_full"),
        ("litgpt-2024", "chunked", "litgpt_chunked"),
        ("torchtune-0.4-compile", "chunked", "torchtune_compiled"),
    ],
)
def test_what_a_loss_means_on_a_stack(stack: str, loss: str, path: str) -> None:
    assert find_stack(stack).logits_path(loss) == path


def test_adapters_are_cast_to_bfloat16_by_trl_on_a_quantised_base_only() -> None:
    trl, plain = find_stack("trl-1.16"), find_stack("transformers-5")
    assert (trl.adapter_dtype("nf4"), trl.adapter_dtype("int8"), trl.adapter_dtype("none")) == ("bfloat16", "bfloat16", "float32")
    assert plain.adapter_dtype("nf4") == "float32"


def test_an_unknown_stack_names_the_closest() -> None:
    with pytest.raises(UnknownNameError) as caught:
        find_stack("trl-1.15")
    assert caught.value.closest[0] == "trl-1.16"
