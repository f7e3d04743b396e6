"""Reading published runs and mapping them to jobs by rule. Rows here are made up; none is from the data."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from made_up_runs import TINY, excluded, known, mapped, run

from llamamath.errors import UsageError
from llamamath.planner.accuracy.caveats import CAVEATS, explains
from llamamath.planner.accuracy.fields import (
    Lengths,
    Measure,
    Missing,
    read_length_kind,
    read_lengths,
    read_measure,
    read_optimizer,
    read_precision,
)
from llamamath.planner.accuracy.jobs import MappedRun, model_names, row_to_job
from llamamath.planner.accuracy.models import own_architecture, published_parameters
from llamamath.planner.accuracy.orders import NUM_ORDERS, Sampling, orders
from llamamath.planner.accuracy.rows import parse_run, parse_runs, read_runs
from llamamath.planner.accuracy.software import nearest_stack, software_of, versions
from llamamath.planner.job import ALL_LINEAR, Job
from llamamath.planner.memory import Conditions
from llamamath.planner.parameters import count_parameters
from llamamath.units import GIB, MIB


def test_missing_file_is_a_usage_error_that_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file") as caught:
        read_runs(tmp_path / "none.jsonl")
    assert "LLAMAMATH_SHARED_DATA" in caught.value.hint


@pytest.mark.parametrize(
    "line",
    ["{", "[]", "3", "{}", '{"id": ""}', '{"id": "a", "seq_len": "many"}', '{"id": "a", "seq_len": -1}', '{"id": "a", "flags": []}',
     '{"id": "a", "measured_bytes": 0}', '{"id": "a", "measured": 3, "unit": "furlongs"}', '{"id": "a", "lora_targets": [1]}',
     '{"id": "a", "micro_batch": 1e400}', "[" * 5000],
)  # fmt: skip
def test_a_malformed_line_spoils_only_itself(line: str) -> None:
    found = parse_runs([json.dumps({"id": "first"}), line, "", json.dumps({"id": "last"})])
    assert [row.id for row in found.runs] == ["first", "last"]
    assert [bad.line for bad in found.malformed] == [2]


def test_an_id_counts_once() -> None:
    found = parse_runs(['{"id": "a"}', '{"id": "a"}'])
    assert len(found.runs) == 1 and "twice" in found.malformed[0].reason


@pytest.mark.parametrize(("unit", "size"), [("GiB", GIB), ("GB", 10**9), ("MiB", MIB), ("bytes", 1)])
def test_a_figure_without_bytes_is_read_in_its_unit(unit: str, size: int) -> None:
    assert parse_run({"id": "a", "measured": 3, "unit": unit}).measured_bytes == 3 * size


def test_versions_are_read_from_the_framework() -> None:
    row = run(framework="peft 0.19.2.dev0 transformers>=4.57.1 torch 2.9.0+cu128")
    assert versions(row) == {"peft": (0, 19, 2), "transformers": (4, 57, 1), "torch": (2, 9, 0)}


@pytest.mark.parametrize(
    ("version", "stack"),
    [((4, 37), ("transformers-4.45", False)), ((4, 45, 2), ("transformers-4.45", True)), ((4, 46, 1), ("transformers-4.48", False)),
     ((4, 48, 1), ("transformers-4.48", True)), ((4, 49), ("transformers-5", False)), ((5, 13, 1), ("transformers-5", True)),
     (None, ("transformers-4.45", False))],
)  # fmt: skip
def test_nearest_stack_follows_the_loss_code(version: tuple[int, ...] | None, stack: tuple[str, bool]) -> None:
    assert nearest_stack(version) == stack


# mapping


def test_fms_baseline_qlora() -> None:
    found = mapped()
    assert found.job == Job(
        model="org/tiny", method="sft", stack="transformers-4.48", quantization="nf4-dq", dtype="bfloat16",
        lora=found.job.lora, per_device_train_batch_size=4, max_length=4096, padding=False, gradient_checkpointing=True, use_reentrant=True,
        kbit_preparation=True, attn_implementation="flash_attention_2", loss="full", optim="adamw_torch", mixed_precision=True,
        fused_kernels=False,
    )  # fmt: skip
    lora = found.job.lora
    assert lora is not None and (lora.r, lora.lora_dropout, lora.dtype) == (16, 0.1, "float32")
    assert lora.target_modules == ("q_proj", "k_proj", "v_proj", "o_proj")
    assert (found.group, found.measure, found.measured_bytes) == ("A", "allocated", 10 * GIB)
    assert found.architecture.vocab_size == TINY.vocab_size + 1  # the benchmark adds a pad token
    assert found.run.nvidia_smi_bytes == 12000 * MIB


def test_fms_plain_lora_without_autocast_and_other_releases() -> None:
    plain = mapped(method="lora", quant="none", dtype="weights bfloat16; no amp", flags={"config": "none", "packing": True})
    assert (plain.job.mixed_precision, plain.job.kbit_preparation, plain.job.quantization, plain.group) == (False, False, "none", "A")
    older = mapped(framework="transformers 4.45.2 peft 0.12.0")
    assert (older.job.stack, older.group) == ("transformers-4.45", "A")
    between = mapped(framework="transformers 4.47.0 peft 0.13.2")
    assert (between.job.stack, between.group) == ("transformers-4.48", "B") and "other-version" in between.caveats


def test_fms_fused_kernels_and_liger() -> None:
    fused = mapped(flags={"config": "accelerated-peft-bnb-foak", "packing": True})
    assert (fused.job.fused_kernels, fused.job.loss, fused.job.kbit_preparation, fused.group) == (True, "full", False, "B")
    liger = mapped(flags={"config": "foak-fast-kernels-liger", "packing": True})
    assert (liger.job.fused_kernels, liger.job.loss) == (True, "liger")


def test_full_fine_tuning_has_no_adapters() -> None:
    full = mapped(method="full", quant="none", lora_rank=None, lora_targets=None, flags={"config": "none", "packing": True})
    assert full.job.lora is None and full.job.method == "sft"
    assert excluded(method="full") == "quantised weights trained in full"


def test_peft_benchmark_is_padded_and_reads_the_adapter_configuration() -> None:
    changes: dict[str, object] = {
        "source": "huggingface/peft method_comparison/MetaMathQA/results/x.json", "framework": "peft 0.19.2 transformers 5.13.1",
        "method": "lora", "quant": "none", "dtype": "base bfloat16; adapter weights fp32", "seq_len_kind": "max (truncation)",
        "measure": "torch.cuda.max_memory_reserved", "flags": {"amp": False}, "attn": "transformers default (sdpa)",
        "grad_checkpointing": False, "optimizer": "AdamW (torch default: foreach)",
    }  # fmt: skip
    row = mapped(**changes, extra={"peft_config": {"peft_type": "LORA", "r": 16, "use_dora": True, "bias": "none"}})
    lora = row.job.lora
    assert lora is not None and lora.use_dora and lora.lora_dropout == 0 and lora.dtype == "float32"
    assert row.job.padding and row.job.mixed_precision is False and row.job.attn_implementation == "sdpa"
    assert (row.group, row.measure, row.length_kind, row.job.stack) == ("C", "reserved", "bound", "transformers-5")
    assert {"length-bound", "reserved-varying", "peft-benchmark-evaluation"} <= set(row.caveats) and row.conditions.empties_cache
    for config in ({"use_bdlora": {"nblocks": 2}}, {"init_lora_weights": "mica"}, {"bias": "all"}, {"layer_replication": [[0, 4]]}):
        assert excluded(**changes, extra={"peft_config": config}) == "a variant of LoRA that a Job cannot describe"
    assert isinstance(row_to_job(run(**changes, extra={"peft_config": {"init_lora_weights": "pissa"}}), known), MappedRun)


def test_litgpt_names_and_pure_bfloat16() -> None:
    row = mapped(
        source="", framework="litgpt 0.4", dtype="bf16-true", quant="nf4", lora_targets=["query", "value"], grad_checkpointing=False,
        optimizer="torch.optim.AdamW -> bnb PagedAdamW when quantized", seq_len_kind="EXACT first-iteration length", attn="torch sdpa",
    )  # fmt: skip
    lora = row.job.lora
    assert lora is not None and lora.target_modules == ("q_proj", "v_proj") and lora.dtype == "bfloat16" and lora.lora_dropout == 0.05
    assert (row.job.optim, row.job.quantization, row.job.mixed_precision) == ("paged_adamw_32bit", "nf4", False)
    assert (row.group, row.job.loss, row.job.stack) == ("D", "chunked", "litgpt-2024")
    old = mapped(source="", framework="lit-gpt 8641822", dtype="bf16-true", method="full", quant="none", seq_len_kind="EXACT", attn="sdpa")
    assert (old.job.stack, old.job.loss) == ("litgpt-2023", "full")


def test_torchtune_chunked_loss_and_offloading() -> None:
    row = mapped(
        source="", framework="torchtune ~0.4", dtype="bf16 (params, grads, optimizer state bf16)", quant="none", method="lora",
        lora_targets=["q_proj", "v_proj", "output_proj", "mlp"], optimizer="torch AdamW fused", attn="torch sdpa",
        flags={"packed": True, "compile": True, "chunked_ce": True, "activation_offload": True}, measure="peak_memory_active",
    )  # fmt: skip
    assert row.job.lora is not None
    assert row.job.lora.target_modules == ("q_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    assert (row.job.offload, row.job.loss, row.job.optim) == (("checkpoints",), "chunked", "adamw_torch_fused")
    assert row.job.stack == "torchtune-0.4-compile" and {"torch-compile", "active-bytes"} <= set(row.caveats)
    assert excluded(source="", framework="torchtune ~0.4", flags={"optimizer_in_bwd": True}) == "optimizer a Job cannot describe"


def test_qwen_names_and_ms_swift_defaults() -> None:
    swift: dict[str, object] = {
        "source": "", "framework": "ms-swift 1.x; torch 2.1.1", "model": "Qwen/Qwen-7B-Chat", "dtype": "bf16", "quant": "bnb-int4",
        "lora_targets": "DEFAULT (c_attn)", "seq_len_kind": "max_length truncation -> peak batch reaches max_length",
        "measure": "torch.cuda.max_memory_reserved", "flags": {},
    }  # fmt: skip
    row = mapped(**swift)
    assert row.job.lora is not None and row.job.lora.target_modules == ("c_attn",)
    assert (row.job.quantization, row.job.lora.dtype, row.job.mixed_precision, row.group) == ("nf4-dq", "float32", True, "C")
    assert row.architecture.family == "qwen" and row.job.stack == "transformers-4.36" and "length-reached" in row.caveats
    assert row.job.padding is False
    linears = mapped(**swift | {"lora_targets": ["c_attn", "c_proj", "w1", "w2"], "quant": "none"})
    assert linears.job.lora is not None and linears.job.lora.target_modules == ALL_LINEAR and linears.job.lora.dtype == "bfloat16"
    assert excluded(**swift | {"quant": "gptq-int4"}).startswith("weights quantised by another method")
    own = {"source": "", "framework": "Qwen repo finetune.py; transformers>=4.32", "model": "Qwen/Qwen-7B", "dtype": "bf16"}
    assert excluded(**own, method="full", quant="none").startswith("sharded or offloading engine")


def test_lengths_are_read_and_drawn_in_several_orders() -> None:
    text = "max_length truncation on cls-fudan-news-zh (lengths 3234+-2547, min 91, max 19548) -> peak batch reaches max_length"
    lengths = read_lengths(run(seq_len_kind=text))
    assert lengths == Lengths(mean=3234, deviation=2547, shortest=91, longest=19548)
    assert read_lengths(run(seq_len_kind="exact")) is None and read_lengths(run(seq_len_kind="lengths 5+-0, min 9, max 1")) is None
    assert lengths is not None
    dropping = orders(lengths, Sampling(limit=2048, batch_size=1, num_samples=500, drops_long=True))
    cutting = orders(lengths, Sampling(limit=2048, batch_size=1, num_samples=500, drops_long=False))
    assert dropping == orders(lengths, Sampling(limit=2048, batch_size=1, num_samples=500, drops_long=True))  # fixed seeds
    assert len(dropping) == len(cutting) == NUM_ORDERS and len(set(dropping)) > 1
    assert all(91 <= length <= 2048 for order in dropping for length in order)
    assert all(len(order) == 500 and order.count(2048) > 250 for order in cutting)
    assert orders(lengths, Sampling(limit=90, batch_size=1, num_samples=500, drops_long=True)) == ()
    pairs = orders(lengths, Sampling(limit=2048, batch_size=2, num_samples=500, drops_long=False))
    assert all(len(order) == 250 for order in pairs)


def test_what_a_run_is_replayed_with() -> None:
    assert mapped().conditions == Conditions()
    swift = mapped(
        source="", framework="ms-swift 1.x", model="Qwen/Qwen-7B-Chat", dtype="bf16", quant="none", lora_targets="DEFAULT", flags={},
        seq_len=2048, seq_len_kind="truncation (lengths 3234+-2547, min 91, max 19548)", measure="torch.cuda.max_memory_reserved",
    )  # fmt: skip
    assert len(swift.conditions.orders) == NUM_ORDERS and max(map(max, swift.conditions.orders)) <= 2048
    assert "order-unknown" in swift.caveats and "reserved-varying" not in swift.caveats


def test_unsloth_precision_by_gpu_and_offloaded_checkpoints() -> None:
    changes: dict[str, object] = {
        "source": "", "framework": "unsloth 2024.8", "dtype": "fp16 on T4 / bf16 on A100,L4,A10G", "gpu": "Tesla T4",
        "quant": "nf4 (unsloth bnb-4bit)", "grad_checkpointing": "unsloth (CPU-offloaded)", "optimizer": "adamw_8bit",
        "attn": "Xformers = 0.0.28. FA2 = False", "seq_len_kind": "max only; real batch length = longest sample",
        "flags": {"packing": "False", "trainer": ["SFTTrainer"]}, "measure": "torch.cuda.max_memory_reserved()/1024^3",
    }  # fmt: skip
    row = mapped(**changes)
    assert (row.job.dtype, row.job.quantization, row.job.optim, row.job.attn_implementation) == ("float16", "nf4-dq", "adamw_8bit", "sdpa")
    assert row.job.gradient_checkpointing and row.job.offload == ("checkpoints",) and row.job.padding is False and row.group == "E"
    assert mapped(**changes | {"gpu": "NVIDIA L4"}).job.dtype == "bfloat16"
    assert excluded(**changes | {"gpu": None}) == "precision not stated"
    assert excluded(**changes | {"flags": {"trainer": ["SentenceTransformerTrainer"]}}).startswith("not causal language modelling")
    assert excluded(**changes | {"note": "multimodal/audio data"}).startswith("not causal language modelling")


def test_phi3_is_stored_with_separate_projections_by_unsloth() -> None:
    phi3 = replace(TINY, family="phi3", fused_projections=True)
    row = run(
        source="", framework="unsloth 2024.8", flags={"trainer": ["SFTTrainer"]}, attn="FA2 = True", optimizer="adamw_8bit", gpu="Tesla T4",
        measure="max_memory_reserved",
    )  # fmt: skip
    found = row_to_job(row, lambda name: phi3)
    assert isinstance(found, MappedRun) and not found.architecture.fused_projections
    assert found.job.attn_implementation == "flash_attention_2"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"gpu_count": 2}, "more than one GPU"),
        ({"gpu_count": None}, "number of GPUs not stated"),
        ({"method": "peft:VERA"}, "a method other than LoRA and full fine-tuning"),
        ({"method": "adapter_v2"}, "a method other than LoRA and full fine-tuning"),
        ({"model": "org/unheard-of"}, "model or architecture not described here"),
        ({"model": None}, "model not stated"),
        ({"framework": ""}, "software not stated"),
        ({"framework": "mytrainer 0.1", "source": ""}, "training code not known here"),
        ({"framework": "transformers 4.48.1, DeepSpeed ZeRO-3"}, "sharded or offloading engine (DeepSpeed, FSDP)"),
        ({"seq_len": None}, "sequence length not stated"),
        ({"micro_batch": None}, "batch size not stated"),
        ({"dtype": None}, "precision not stated"),
        ({"lora_rank": None}, "LoRA rank or targets not stated"),
        ({"lora_targets": None}, "LoRA rank or targets not stated"),
        ({"lora_targets": ["q_proj", "lm_head"]}, "embeddings or lm_head trained or adapted too"),
        ({"grad_checkpointing": None}, "gradient checkpointing not stated"),
        ({"optimizer": None}, "optimizer not stated"),
        ({"optimizer": "lora-fa"}, "optimizer a Job cannot describe"),
        ({"measured_bytes": None}, "no figure"),
        ({"measure": "allocation after model init only"}, "not a training peak"),
        ({"source": "fms-acceleration x_QAT.ipynb"}, "quantisation-aware training"),
    ],
)
def test_what_leaves_a_row_out(changes: dict[str, object], reason: str) -> None:
    assert excluded(**changes) == reason


def test_mapping_ignores_id_and_figure() -> None:
    one, other = mapped(), mapped(id="another", measured_bytes=77 * GIB)
    assert one.job == other.job and one.group == other.group and one.caveats == other.caveats


def test_grpo_and_dpo() -> None:
    changes: dict[str, object] = {"source": "", "framework": "trl 1.16.0", "flags": {"use_reentrant": False}}
    grpo = mapped(**changes, method="grpo (qlora, no vLLM)", seq_len=None, prompt_len=256, completion_len=512, num_generations=8)
    assert (grpo.job.method, grpo.job.max_prompt_length, grpo.job.max_completion_length, grpo.job.num_generations) == ("grpo", 256, 512, 8)
    assert grpo.job.padding and grpo.job.use_reentrant is False and grpo.job.loss == "chunked"
    assert excluded(**changes, method="grpo (qlora)", seq_len=512) == "sequence length not stated"
    dpo = mapped(**changes, method="dpo (full)", quant="none", lora_rank=None, lora_targets=None)
    assert (dpo.job.method, dpo.job.lora, dpo.job.padding) == ("dpo", None, True)


@pytest.mark.parametrize(
    ("version", "loss", "mixed_precision"),
    [("trl ~0.16 quickstart", "full", False), ("trl 0.19.0", "full", True), ("trl 1.16.0", "chunked", True), ("trl main", "chunked", True)],
)
def test_trl_made_all_logits_before_1_and_had_no_autocast_before_0_19(version: str, loss: str, mixed_precision: bool) -> None:
    software = software_of(run(source="", framework=version))
    assert not isinstance(software, str)
    assert (software.loss, software.mixed_precision) == (loss, mixed_precision)


def test_model_names_drop_remarks_and_upload_suffixes() -> None:
    assert model_names("Qwen/Qwen2.5-0.5B (Instruct?)")[1] == "Qwen/Qwen2.5-0.5B"
    assert "meta-llama/Llama-3.2-1B" in model_names("unsloth/Llama-3.2-1B-unsloth-bnb-4bit")
    assert model_names("org/plain") == ("org/plain",)


@pytest.mark.parametrize("name", ["Qwen/Qwen-1_8B-Chat", "Qwen/Qwen-7B", "Qwen/Qwen-14B-Chat", "Qwen/Qwen-72B"])
def test_qwen1_has_the_published_number_of_parameters(name: str) -> None:
    architecture = own_architecture(name)
    assert architecture is not None and own_architecture("Qwen/Qwen2-7B") is None
    assert count_parameters(architecture) == published_parameters(name)


@pytest.mark.parametrize(
    ("text", "kind"),
    [("torch.cuda.max_memory_allocated()/1e9", "allocated"), ("torch.cuda.max_memory_reserved", "reserved"),
     ("peak_memory_active", "allocated"), ("nvidia-smi", "device"), ("a comment: ~9 GB VRAM", "device"),
     ("axolotl logs max active/allocated/reserved; not stated", "reserved")],
)  # fmt: skip
def test_what_was_measured(text: str, kind: str) -> None:
    found = read_measure(run(measure=text))
    assert isinstance(found, Measure) and found.kind == kind


@pytest.mark.parametrize(
    ("kind", "flags", "expected"),
    [("exact: padded to model_max_length", {}, "exact"), ("max only; longest sample", {"packing": "True"}, "exact"), ("", {}, "bound"),
     ("max 4096, NOT packed", {}, "bound"), ("packed to 4096 (exact)", {}, "exact"), ("max_length; longest reaches 512", {}, "reached")],
)  # fmt: skip
def test_how_sure_the_length_is(kind: str, flags: dict[str, object], expected: str) -> None:
    assert read_length_kind(run(seq_len_kind=kind, flags=flags)) == expected


@pytest.mark.parametrize(
    ("text", "name"),
    [("paged_adamw_8bit", "paged_adamw_8bit"), ("AdamW8bit (torchao)", "adamw_8bit"), ("torch AdamW fused", "adamw_torch_fused"),
     ("torch.optim.AdamW (fused? default PagedAdamW8bit overridden)", "adamw_torch"), ("adamw_bnb_8bit", "adamw_8bit"), ("sgd", "sgd"),
     ("Adafactor", "adafactor")],
)  # fmt: skip
def test_optimizer_names(text: str, name: str) -> None:
    assert read_optimizer(run(optimizer=text), "none") == name


def test_precision_texts() -> None:
    def weights(text: str) -> object:
        found = read_precision(run(dtype=text, flags={}))
        return found if isinstance(found, Missing) else (found.weights, found.adapters, found.mixed)

    assert weights("weights float16; amp fp16") == ("float16", None, True)
    assert weights("base bfloat16; adapter weights fp32") == ("bfloat16", "float32", None)
    assert weights("bf16 (pure: weights, LoRA, states)") == ("bfloat16", "bfloat16", False)
    assert isinstance(weights("compute n/a"), Missing)


def test_known_software_uses_known_caveats() -> None:
    for framework in ("peft 0.19 transformers 5.1", "litgpt", "torchtune", "axolotl", "unsloth 1", "ms-swift", "trl 0.15.0", "trl main"):
        software = software_of(run(source="", framework=framework))
        assert isinstance(software, str) or set(software.caveats) <= set(CAVEATS)
    assert all(caveat.key == key for key, caveat in CAVEATS.items())
    assert explains("length-bound", over=True) and not explains("length-bound", over=False)
