"""Time: the formulas against sums written out, the published rules of thumb, and nothing where a rate is unknown."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from llamamath.errors import FieldError
from llamamath.planner.architecture import Architecture
from llamamath.planner.device import Device
from llamamath.planner.job import Job, Lora, Rollout
from llamamath.planner.model_files.config_file import resolve_model
from llamamath.planner.throughput.roofline import (
    DECODE_PRODUCT_SHARE,
    LAUNCH_SECONDS_PER_LAYER,
    Rates,
    decode_seconds,
    micro_batch,
    optimizer_seconds,
    rates_of,
    utilisation,
    work_of,
    work_of_job,
)
from llamamath.planner.throughput.step_time import UNCERTAINTY, needs_link, num_steps, phase_seconds, run_cost, step_time
from llamamath.planner.throughput.token_lengths import TokenLengths, measure

RATES = Rates(71.2e12, 936e9, 25.2e9)
CARD = Device(
    name="card",
    kind="cuda",
    total_bytes=24 * 2**30,
    limit_bytes=23 * 2**30,
    limit_basis="test",
    memory_bandwidth_bytes_per_second=936e9,
    bf16_flops_per_second=71.2e12,
    host_to_device_bytes_per_second=25.2e9,
    price_usd_per_hour_low=0.2,
    price_usd_per_hour_high=0.3,
)
LLAMA_1B, LLAMA_3B = resolve_model("Llama-3.2-1B"), resolve_model("Llama-3.2-3B")
SFT = Job(model="m", method="sft", max_length=2048, per_device_train_batch_size=4, gradient_accumulation_steps=4)
GRPO = Job(
    model="m",
    method="grpo",
    max_prompt_length=512,
    max_completion_length=1024,
    num_generations=8,
    per_device_train_batch_size=4,
    gradient_accumulation_steps=16,
)


@pytest.mark.parametrize(("tokens", "share"), [(1, 0.10), (128, 0.10), (512, 0.20), (2048, 0.33), (8192, 0.475), (10**6, 0.475)])
def test_utilisation_meets_the_rules_of_thumb(tokens: int, share: float) -> None:
    assert utilisation(tokens) == pytest.approx(share)


def test_utilisation_rises() -> None:
    values = [utilisation(tokens) for tokens in range(1, 20_000, 7)]
    assert values == sorted(values)


def test_training_takes_6n_plus_9lht_flop_per_token() -> None:
    """Frozen base, full recomputation, causal attention: the rule of thumb, exactly."""
    architecture = replace(LLAMA_1B, num_attention_heads=32, head_dim=64)
    work = replace(work_of(architecture, Lora(), "none", "bfloat16", False), adapters=0)
    assert work.query_size == architecture.hidden_size
    length, rows = 4096, 4
    found = micro_batch(SFT, work, RATES, rows=rows, length=length, scored=0, whole_square=False)
    flop = (found.forward + found.backward) * utilisation(rows * length) * RATES.flops_per_second
    per_token = 6 * work.linear + 9 * architecture.num_hidden_layers * architecture.hidden_size * length
    assert flop == pytest.approx(rows * length * per_token)


def test_parts_of_a_pass() -> None:
    work = work_of(LLAMA_3B, Lora(), "none", "bfloat16", False)
    kept = micro_batch(SFT.changed(gradient_checkpointing=False), work, RATES, rows=4, length=2048, scored=8000, whole_square=False)
    again = micro_batch(SFT, work, RATES, rows=4, length=2048, scored=8000, whole_square=False)
    assert again.backward == pytest.approx(kept.backward + kept.forward)
    whole = micro_batch(SFT.changed(loss="full"), work, RATES, rows=4, length=2048, scored=8000, whole_square=False)
    assert again.head_backward == pytest.approx(2 * whole.head_backward)
    square = micro_batch(SFT, work, RATES, rows=4, length=2048, scored=8000, whole_square=True)
    extra = 2.0 * work.attention_layers * work.query_size * 2048 * (4 * 2048)
    assert (square.forward - again.forward) * utilisation(8192) * RATES.flops_per_second == pytest.approx(extra)
    trained = micro_batch(SFT.changed(lora=None), replace(work, adapters=0), RATES, rows=4, length=2048, scored=0, whole_square=False)
    frozen = micro_batch(SFT, replace(work, adapters=0), RATES, rows=4, length=2048, scored=0, whole_square=False)
    weights = 2.0 * work.linear * 4 * 2048
    assert (trained.backward - frozen.backward) * utilisation(8192) * RATES.flops_per_second == pytest.approx(weights)


def test_dequantisation_costs_bandwidth_and_small_batches_cost_launches() -> None:
    plain, packed = work_of(LLAMA_3B, Lora(), "none", "bfloat16", False), work_of(LLAMA_3B, Lora(), "nf4-dq", "bfloat16", False)
    assert packed.quantized == plain.linear and plain.quantized == 0
    slower = (
        micro_batch(SFT, packed, RATES, rows=4, length=2048, scored=0, whole_square=False).forward
        - micro_batch(SFT, plain, RATES, rows=4, length=2048, scored=0, whole_square=False).forward
    )
    assert slower == pytest.approx(4.5 * plain.linear / (0.45 * 936e9))
    tiny = micro_batch(SFT, plain, Rates(1e18, 1e18), rows=1, length=1, scored=0, whole_square=False)
    assert tiny.forward == pytest.approx(28 * LAUNCH_SECONDS_PER_LAYER)


@pytest.mark.parametrize("rows", [1, 8, 64, 512])
@pytest.mark.parametrize("repeated", [False, True])
@pytest.mark.parametrize("quantization", ["none", "nf4-dq"])
def test_decoding_is_the_sum_over_its_steps(rows: int, repeated: bool, quantization: str) -> None:
    job = GRPO.changed(quantization=quantization)
    work, prompt, completion = work_of_job(job, LLAMA_3B), 500, 900
    traffic = 2 + (1 + 2 * LLAMA_3B.num_attention_heads / LLAMA_3B.num_key_value_heads if repeated else 1)
    cache = 2 * LLAMA_3B.num_hidden_layers * LLAMA_3B.key_value_size * 2
    product = 2 * (work.linear + work.adapters + work.head) * rows / (DECODE_PRODUCT_SHARE * RATES.flops_per_second)
    floor = max(product, LLAMA_3B.num_hidden_layers * LAUNCH_SECONDS_PER_LAYER)
    steps = [
        max((work.stored_bytes + traffic * rows * (prompt + step) * cache) / RATES.bandwidth_bytes_per_second, floor)
        for step in range(completion)
    ]
    found = decode_seconds(job, work, RATES, rows=rows, prompt=prompt, completion=completion, repeated=repeated)
    assert found == pytest.approx(sum(steps), rel=2e-3)


def test_one_decode_step_of_a_3b_model_takes_20_to_40_ms() -> None:
    found = decode_seconds(GRPO, work_of_job(GRPO, LLAMA_3B), RATES, rows=8, prompt=512, completion=100, repeated=False)
    assert 0.020 <= found / 100 <= 0.040


def test_vllm_launches_nothing_and_reads_unquantised_weights() -> None:
    job = GRPO.changed(rollout=Rollout(engine="vllm"))
    work = work_of_job(job, LLAMA_3B)
    found = decode_seconds(job, work, RATES, rows=1, prompt=1, completion=100, repeated=True)
    assert found / 100 == pytest.approx(work.unquantized_bytes / 936e9, rel=0.01)


def test_what_a_decode_step_reads_is_what_is_stored() -> None:
    quantized = work_of(LLAMA_3B, Lora(), "nf4-dq", "bfloat16", False)
    plain = work_of(LLAMA_3B, Lora(), "none", "bfloat16", False)
    assert plain.stored_bytes == plain.unquantized_bytes == 2 * (plain.linear + plain.head)
    assert 0.25 < (quantized.stored_bytes - 2 * plain.head) / (2 * plain.linear) < 0.26


@pytest.mark.parametrize(
    ("optim", "dtype", "bytes_per_parameter"),
    [("adamw_torch_fused", "bfloat16", 14), ("adamw_torch", "float32", 28), ("paged_adamw_8bit", "bfloat16", 10), ("sgd", "bfloat16", 6)],
)
def test_the_optimizer_moves_each_of_its_tensors(optim: str, dtype: str, bytes_per_parameter: int) -> None:
    job = SFT.changed(optim=optim, lora=Lora(dtype=dtype))
    work = work_of_job(job, LLAMA_1B)
    assert optimizer_seconds(job, work, RATES) * 936e9 == pytest.approx(bytes_per_parameter * work.trainable)


@pytest.mark.parametrize(
    "changes",
    [{"memory_bandwidth_bytes_per_second": None}, {"bf16_flops_per_second": None}, {"kind": "cpu", "bf16_flops_per_second": None}],
)
def test_unknown_rates_mean_unknown_time(changes: dict[str, Any]) -> None:
    device = replace(CARD, **changes)
    assert rates_of(device) is None
    assert step_time(GRPO, LLAMA_3B, device) is None


def test_an_unknown_link_matters_only_to_jobs_that_use_it() -> None:
    device = replace(CARD, host_to_device_bytes_per_second=None)
    assert step_time(SFT, LLAMA_3B, device) is not None
    moved = SFT.changed(offload=("checkpoints",))
    assert needs_link(moved) and step_time(moved, LLAMA_3B, device) is None
    unused = moved.changed(gradient_checkpointing=False)
    assert not needs_link(unused) and step_time(unused, LLAMA_3B, device) is not None


@pytest.mark.parametrize(
    "job", [SFT, GRPO, SFT.changed(method="dpo", beta=0.1), SFT.changed(offload=("checkpoints",)), GRPO.changed(beta=0.1)]
)
def test_a_step_is_its_phases_with_a_factor_of_two_either_way(job: Job) -> None:
    step = step_time(job, LLAMA_3B, CARD)
    assert step is not None
    for phase in step.phases:
        assert 0 < phase.low_seconds < phase.expected_seconds < phase.high_seconds
        assert phase.expected_seconds == pytest.approx(UNCERTAINTY * phase.low_seconds)
        assert phase.high_seconds >= UNCERTAINTY * phase.expected_seconds
    assert step.expected_seconds == pytest.approx(sum(phase.expected_seconds for phase in step.phases))
    assert step.samples_per_second == pytest.approx(job.effective_batch_size / step.expected_seconds)
    rows = job.effective_batch_size * (2 if job.method == "dpo" else 1)
    assert step.tokens_per_step == rows * job.sequence_length
    assert step.tokens_per_second == pytest.approx(step.tokens_per_step / step.expected_seconds)


def names(job: Job, architecture: Architecture = LLAMA_3B) -> list[str]:
    step = step_time(job, architecture, CARD)
    assert step is not None
    return [phase.name for phase in step.phases]


def test_each_method_has_its_phases() -> None:
    assert names(SFT) == ["forward", "backward", "optimizer"]
    assert names(SFT.changed(method="dpo", beta=0.1)) == ["score", "forward", "backward", "optimizer"]
    assert names(GRPO) == ["generate", "forward", "backward", "optimizer"]
    assert "score" in names(GRPO.changed(beta=0.04))
    assert "score" in names(GRPO.changed(rollout=Rollout(engine="vllm")))
    assert "score" in names(GRPO.changed(steps_per_generation=32))


def test_rollouts() -> None:
    """Fewer, larger rollouts are faster; rollouts that are used twice are made half as often."""
    whole, parts = phase_seconds(GRPO, LLAMA_3B, RATES), phase_seconds(GRPO.changed(steps_per_generation=4), LLAMA_3B, RATES)
    assert parts[0] > whole[0] and parts[2:] == whole[2:]
    twice = phase_seconds(GRPO.changed(num_iterations=2), LLAMA_3B, RATES)
    assert twice[0] == pytest.approx(whole[0] / 2)


def test_packed_rows_and_larger_micro_batches_are_faster() -> None:
    padded, packed = sum(phase_seconds(SFT, LLAMA_3B, RATES)), sum(phase_seconds(SFT.changed(padding=False), LLAMA_3B, RATES))
    assert packed < padded
    times = []
    for batch in (1, 2, 4, 8, 16):
        job = SFT.changed(max_length=512, per_device_train_batch_size=batch, gradient_accumulation_steps=16 // batch)
        times.append(sum(phase_seconds(job, LLAMA_3B, RATES)))
    assert times == sorted(times, reverse=True)


def test_offloading_costs_little_when_it_is_hidden_and_its_copies_when_not() -> None:
    stays, moves = SFT, SFT.changed(offload=("checkpoints",))
    hidden = sum(phase_seconds(moves, LLAMA_3B, RATES)) / sum(phase_seconds(stays, LLAMA_3B, RATES))
    assert 1.0 < hidden < 1.025
    slow = replace(RATES, link_bytes_per_second=0.1e9)
    copied = 2 * 4 * 2048 * LLAMA_3B.hidden_size * LLAMA_3B.num_hidden_layers / 0.1e9
    assert phase_seconds(moves, LLAMA_3B, slow)[2] > 4 * copied
    seen = sum(phase_seconds(moves, LLAMA_3B, RATES, overlap=False))
    assert seen > sum(phase_seconds(moves, LLAMA_3B, RATES))


def test_streaming_weights_is_paid_at_every_decode_step() -> None:
    job = GRPO.changed(offload=("weights",), use_reentrant=True)
    work = work_of_job(job, LLAMA_3B)
    least = 1024 * work.layer_bytes * (1 - 2 / 28) / 25.2e9
    assert phase_seconds(job, LLAMA_3B, RATES)[0] >= least


def test_skipped_cross_attention_layers_take_no_time() -> None:
    vision = resolve_model("Llama-3.2-11B-Vision")
    text, seeing = work_of(vision, None, "none", "bfloat16", False), work_of(vision, None, "none", "bfloat16", True)
    assert text.layers == 32 and seeing.layers == 40
    assert text.vision_tokens == 0 and seeing.vision_tokens == 4 * 1025
    assert text.linear < seeing.linear


@pytest.mark.parametrize(
    ("job", "samples", "epochs", "steps"),
    [
        (SFT, 7473, 2.0, 935),
        (SFT, 1, 1.0, 1),
        (GRPO, 1000, 1.0, 125),
        (GRPO, 1001, 1.0, 126),
        (GRPO.changed(num_iterations=2), 1000, 1.0, 250),
        (SFT.changed(method="dpo"), 545, 1.0, 35),
    ],
)
def test_steps_of_a_run(job: Job, samples: int, epochs: float, steps: int) -> None:
    assert num_steps(samples, epochs, job) == steps


def test_cost_is_the_range_of_prices_times_the_range_of_hours() -> None:
    step = step_time(GRPO, LLAMA_3B, CARD)
    assert step is not None
    cost = run_cost(step, 1000, 1.0, GRPO, CARD)
    assert cost.expected_hours == pytest.approx(125 * step.expected_seconds / 3600)
    assert cost.low_usd == pytest.approx(0.2 * cost.low_hours) and cost.high_usd == pytest.approx(0.3 * cost.high_hours)
    free = run_cost(step, 1000, 1.0, GRPO, replace(CARD, price_usd_per_hour_low=None, price_usd_per_hour_high=None))
    assert free.low_usd is None and free.high_usd is None


def test_a_3b_model_on_a_24_gb_card_trains_at_a_plausible_pace() -> None:
    """SFT in bf16 LoRA: 71.2 TFLOP/s at 0.475 over 6N + 9LHT + head is 1,100 to 1,700 tokens a second."""
    step = step_time(SFT.changed(quantization="none"), LLAMA_3B, CARD)
    assert step is not None and 1000 < step.tokens_per_second < 2000


def test_shorter_data_shortens_what_is_expected_and_not_the_worst_case() -> None:
    lengths = measure([200] * 50 + [400] * 45 + [2000] * 5)
    whole, typical = step_time(SFT, LLAMA_3B, CARD), step_time(SFT, LLAMA_3B, CARD, lengths)
    assert whole is not None and typical is not None
    assert typical.expected_seconds < 0.5 * whole.expected_seconds
    assert typical.high_seconds == pytest.approx(whole.high_seconds)
    assert typical.tokens_per_step == pytest.approx(16 * lengths.longest_of(4))


def test_token_lengths() -> None:
    lengths = measure(range(1, 101))
    assert lengths.percentiles == ((50, 50), (75, 75), (90, 90), (95, 95), (99, 99), (100, 100))
    assert lengths.at(80) == 80 and lengths.at(10) == 50 and lengths.at(100) == 100
    assert lengths.longest_of(1) == 50 and lengths.longest_of(3) == 75
    assert lengths.holding(99) == 128 and lengths.holding(50) == 64


@pytest.mark.parametrize("percentiles", [(), ((50, 10), (90, 9)), ((90, 10), (50, 20)), ((50, 0),), ((101, 5),)])
def test_token_lengths_that_make_no_sense_are_refused(percentiles: tuple[tuple[int, int], ...]) -> None:
    with pytest.raises(FieldError):
        TokenLengths(percentiles=percentiles)
    with pytest.raises(FieldError):
        measure([])
