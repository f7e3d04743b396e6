"""Reserved memory by replay: the tape of a whole micro-batch, and what the allocator makes of it."""

import pytest

from llamamath.planner.accuracy.models import own_architecture
from llamamath.planner.architecture import Architecture
from llamamath.planner.job import Job, Lora
from llamamath.planner.memory import Conditions, estimate
from llamamath.planner.memory.estimating import device_memory, workspace_bytes
from llamamath.planner.memory.from_job import settings_of, training_values
from llamamath.planner.memory.polynomial import coefficients, evaluate
from llamamath.planner.memory.reserving import peak_reserved, replays
from llamamath.planner.memory.static import aligned
from llamamath.planner.memory.tape import tape_of
from llamamath.units import GIB, MIB

SMALL = Architecture(
    family="llama", name="small", vocab_size=32000, hidden_size=512, intermediate_size=1408, num_hidden_layers=6, num_attention_heads=8,
    num_key_value_heads=4, head_dim=64, tie_word_embeddings=False, max_position_embeddings=4096,
)  # fmt: skip
PLAIN = Job(
    model="small", method="sft", stack="transformers-4.48", quantization="none", lora=Lora(dtype="float32"), max_length=512,
    per_device_train_batch_size=2, padding=False, loss="full", optim="adamw_torch", mixed_precision=False,
)  # fmt: skip
LITGPT = PLAIN.changed(
    stack="litgpt-2024", loss="chunked", quantization="nf4", gradient_checkpointing=False, lora=Lora(target_modules=("q_proj", "v_proj"))
)


@pytest.mark.parametrize("job", [PLAIN, PLAIN.changed(gradient_checkpointing=False), PLAIN.changed(lora=None), LITGPT])
def test_the_tape_of_all_layers_peaks_where_the_extrapolated_walk_does(job: Job) -> None:
    tape = tape_of(SMALL, settings_of(job, SMALL))
    values = training_values(job, SMALL)
    alive = peak = 0
    for event in tape.events:
        size = aligned(evaluate(coefficients(tape.sizes[abs(event) - 1]), values))
        alive += size if event > 0 else -size
        peak = max(peak, alive)
    memory = device_memory(job, SMALL)
    rest = memory.static.base_bytes + memory.static.lora_bytes + memory.optimizer.state_bytes + workspace_bytes(None)
    walked = max(phase.total_bytes for phase in memory.phases if phase.name in ("forward", "backward"))
    assert peak + rest == pytest.approx(walked, rel=0.01)


def test_every_tensor_of_a_tape_is_freed_once_or_left() -> None:
    tape = tape_of(SMALL, settings_of(PLAIN, SMALL))
    made = [event for event in tape.events if event > 0]
    freed = [-event for event in tape.events if event < 0]
    assert made == list(range(1, len(tape.sizes) + 1)) and len(set(freed)) == len(freed)
    assert set(made) - set(freed) == set(tape.left) and tape.gradients <= set(tape.left)


def test_reserved_is_at_least_allocated_and_grows_with_the_length() -> None:
    sizes = [peak_reserved(PLAIN.changed(max_length=length), SMALL, 0, Conditions()) for length in (256, 512, 1024)]
    assert sizes == sorted(sizes)
    allocated = estimate(PLAIN, SMALL).peak.allocated_bytes
    replayed = estimate(PLAIN, SMALL, conditions=Conditions()).peak.reserved_bytes
    assert allocated <= replayed < 1.5 * allocated and replayed % (2 * MIB) == 0


def test_longer_batches_after_shorter_ones_reserve_more_than_the_longest_alone() -> None:
    alone = peak_reserved(PLAIN, SMALL, 0, Conditions())
    growing = peak_reserved(PLAIN, SMALL, 0, Conditions(orders=((128, 200, 300, 400, 512),)))
    falling = peak_reserved(PLAIN, SMALL, 0, Conditions(orders=((512, 400, 300, 200, 128),)))
    emptied = peak_reserved(PLAIN, SMALL, 0, Conditions(orders=((128, 200, 300, 400, 512),), empties_cache=True))
    assert growing > alone >= falling and emptied < growing


def test_a_full_card_gives_its_cache_back() -> None:
    order = Conditions(orders=((128, 200, 300, 400, 512),))
    free = peak_reserved(PLAIN, SMALL, 0, order)
    limited = peak_reserved(PLAIN, SMALL, 0, Conditions(orders=order.orders, capacity_bytes=free - 100 * MIB))
    assert limited <= free - 100 * MIB
    assert peak_reserved(PLAIN, SMALL, 0, Conditions(orders=order.orders, capacity_bytes=64 * MIB)) == free  # it fits in no order


def test_only_runs_of_the_default_allocator_are_replayed() -> None:
    assert replays(PLAIN) and not replays(PLAIN.changed(stack="trl-1.16", loss="chunked"))
    ours = PLAIN.changed(stack="trl-1.16", loss="chunked")
    assert estimate(ours, SMALL, conditions=Conditions()).peak == estimate(ours, SMALL).peak


@pytest.mark.parametrize(
    ("length", "mib"),
    # ms-swift's first benchmark (modelscope/ms-swift docs/source/LLM/Benchmark.md at cfcb67265): every sample cut to max_length, so all
    # batches have one length; A100, torch 2.1.1, max_memory_reserved
    [(512, 15926), (1024, 17096), (2048, 19362)],
)
def test_qwen_7b_with_samples_cut_to_one_length(length: int, mib: int) -> None:
    architecture = own_architecture("Qwen/Qwen-7B-Chat")
    assert architecture is not None
    job = Job(
        model="Qwen/Qwen-7B-Chat", method="sft", stack="transformers-4.36", quantization="none", max_length=length, padding=False,
        loss="full", lora=Lora(r=8, lora_dropout=0.05, target_modules=("c_attn",), dtype="bfloat16"), gradient_accumulation_steps=16,
        optim="adamw_torch", attn_implementation="flash_attention_2", mixed_precision=True,
    )  # fmt: skip
    found = peak_reserved(job, architecture, workspace_bytes(None), Conditions(capacity_bytes=79 * GIB))
    assert found / MIB == pytest.approx(mib, rel=0.015)
