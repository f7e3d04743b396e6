"""Job files: every rule names its field, bad input never becomes a job, and a job survives being written and read."""

import json
import math
import subprocess
import sys
import timeit
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamamath.errors import FieldError, LlamamathError, UnknownNameError, UsageError
from llamamath.planner import job as vocabulary
from llamamath.planner.job import JOB_FIELDS, LORA_FIELDS, Job, Lora, Rollout
from llamamath.planner.job_files.job_file import MAX_TOKENS, check_job, load_job, parse_job, read_jobs_jsonl
from llamamath.planner.job_files.job_text import dump_job, job_to_dict
from llamamath.planner.job_files.yaml_json import MAX_TEXT_BYTES
from llamamath.planner.stack import find_stack

GRPO: dict[str, Any] = {
    "model": "meta-llama/Llama-3.2-3B-Instruct",
    "method": "grpo",
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 4,
    "max_prompt_length": 512,
    "max_completion_length": 1024,
    "num_generations": 8,
}
SFT: dict[str, Any] = {"model": "x/y", "method": "sft", "max_length": 512}
DESIGN = """
model: meta-llama/Llama-3.2-3B-Instruct    # a profile, a local directory or config.json, or a hub id
method: grpo                               # sft | grpo | dpo
stack: trl-1.16
quantization: nf4-dq                       # none | int8 | nf4 | nf4-dq
dtype: bfloat16
lora: {r: 16, lora_alpha: 32, lora_dropout: 0.0, target_modules: all-linear, dtype: bfloat16}   # null: full fine-tuning
per_device_train_batch_size: 4
gradient_accumulation_steps: 4
max_length: null                           # sft, dpo: prompt + completion tokens
max_prompt_length: 512                     # grpo
max_completion_length: 1024                # grpo
num_generations: 8                         # grpo
beta: 0.0
padding: true                              # ragged batches (mask) or packed
gradient_checkpointing: true
use_reentrant: false
kbit_preparation: false
attn_implementation: sdpa
loss: chunked
optim: adamw_torch_fused
offload: []
rollout: {engine: transformers}
"""


def load_text(folder: Path, text: str | bytes, name: str = "job.yaml") -> Job:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_job(path)


def test_the_example_of_the_design_is_read(tmp_path: Path) -> None:
    job = load_text(tmp_path, DESIGN)
    assert job == Job(
        model="meta-llama/Llama-3.2-3B-Instruct",
        method="grpo",
        per_device_train_batch_size=4,
        gradient_accumulation_steps=4,
        max_prompt_length=512,
        max_completion_length=1024,
        num_generations=8,
    )
    assert job == parse_job(GRPO)


def test_absent_keys_mean_the_defaults_of_job_py() -> None:
    assert parse_job(SFT) == Job(model="x/y", method="sft", max_length=512)


@pytest.mark.parametrize(
    ("stack", "quantization", "dtype", "loss"),
    [
        ("trl-1.16", "nf4-dq", "bfloat16", "chunked"),
        ("trl-1.16", "int8", "bfloat16", "chunked"),
        ("trl-1.16", "none", "float32", "chunked"),
        ("transformers-5", "nf4", "float32", "full"),
        ("transformers-4.48", "nf4", "float32", "full"),
        ("transformers-4.45", "none", "float32", "full"),
    ],
)
def test_the_stack_decides_what_is_absent(stack: str, quantization: str, dtype: str, loss: str) -> None:
    job = parse_job({**SFT, "stack": stack, "quantization": quantization, "lora": {"r": 8}})
    assert job.lora == Lora(r=8, dtype=dtype)
    assert job.loss == loss
    explicit = parse_job({**SFT, "stack": stack, "quantization": quantization, "lora": {"dtype": "bfloat16"}})
    assert explicit.lora == Lora(dtype="bfloat16")


def test_dpo_has_trls_beta_unless_told() -> None:
    assert parse_job({**SFT, "method": "dpo"}).beta == 0.1
    assert parse_job({**SFT, "method": "dpo", "beta": 0}).beta == 0.0


BAD_VALUES: list[tuple[str, object]] = [
    ("model", ""),
    ("model", 3),
    ("model", None),
    ("model", "a\nb"),
    ("model", " a"),
    ("model", "\ud800"),
    ("model", "x" * 5000),
    ("method", "ppo"),
    ("method", None),
    ("stack", "trl"),
    ("quantization", "4bit"),
    ("quantization", ["nf4"]),
    ("dtype", "bf16"),
    ("lora", True),
    ("lora", "r=16"),
    ("per_device_train_batch_size", 0),
    ("per_device_train_batch_size", -1),
    ("per_device_train_batch_size", True),
    ("per_device_train_batch_size", 4.5),
    ("per_device_train_batch_size", 8.0),
    ("per_device_train_batch_size", "8"),
    ("per_device_train_batch_size", 10**9),
    ("per_device_train_batch_size", None),
    ("gradient_accumulation_steps", 0),
    ("max_prompt_length", 0),
    ("max_prompt_length", MAX_TOKENS + 1),
    ("max_completion_length", math.inf),
    ("max_completion_length", None),
    ("max_prompt_length", None),
    ("num_generations", 1),
    ("num_generations", None),
    ("beta", math.nan),
    ("beta", math.inf),
    ("beta", -0.1),
    ("beta", True),
    ("beta", "0.1"),
    ("beta", 10**400),
    ("padding", "yes"),
    ("padding", 1),
    ("gradient_checkpointing", None),
    ("attn_implementation", "flash"),
    ("loss", "fused"),
    ("optim", "adam"),
    ("offload", "weights"),
    ("offload", None),
    ("offload", ["weights", "weights"]),
    ("offload", ["disk"]),
    ("rollout", "vllm"),
    ("mixed_precision", "bf16"),
    ("steps_per_generation", 0),
    ("num_iterations", 0),
    ("num_images", -1),
]


@pytest.mark.parametrize(("field", "value"), BAD_VALUES, ids=str)
def test_a_bad_value_is_an_error_naming_its_field(field: str, value: object) -> None:
    with pytest.raises(FieldError) as caught:
        parse_job({**GRPO, field: value})
    assert caught.value.field == field
    assert caught.value.message.startswith(f"job: {field}: ")
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("lora", "r", 0),
        ("lora", "lora_alpha", 0.5),
        ("lora", "lora_dropout", 1),
        ("lora", "lora_dropout", -0.1),
        ("lora", "lora_dropout", math.nan),
        ("lora", "target_modules", []),
        ("lora", "target_modules", ["q_proj", "q_proj"]),
        ("lora", "target_modules", ["q proj"]),
        ("lora", "target_modules", [1]),
        ("lora", "target_modules", "(q_proj"),
        ("lora", "target_modules", "all_linear"),
        ("lora", "dtype", "bf16"),
        ("lora", "use_dora", 1),
        ("rollout", "engine", "sglang"),
    ],
)
def test_a_bad_value_in_a_section_names_section_and_key(section: str, key: str, value: object) -> None:
    with pytest.raises(FieldError) as caught:
        parse_job({**GRPO, section: {key: value}})
    assert caught.value.field == f"{section}.{key}"


@pytest.mark.parametrize(
    ("key", "closest"),
    [
        ("lr", "lora"),
        ("batch_size", "per_device_train_batch_size"),
        ("max_lenght", "max_length"),
        ("bf16", "mixed_precision"),
        ("Model", "model"),
    ],
)
def test_an_unknown_key_names_the_closest(key: str, closest: str) -> None:
    with pytest.raises(UnknownNameError) as caught:
        parse_job({**GRPO, key: 1})
    assert caught.value.name == key
    assert caught.value.closest[0] == closest


def test_an_unknown_key_of_a_section_names_the_closest() -> None:
    with pytest.raises(UnknownNameError) as caught:
        parse_job({**GRPO, "lora": {"rank": 8}})
    assert (caught.value.name, caught.value.closest) == ("lora.rank", ("lora.r",))


def test_an_enumeration_names_the_closest_value() -> None:
    with pytest.raises(FieldError) as caught:
        parse_job({**GRPO, "optim": "paged_adamw_8bits"})
    assert caught.value.closest[0] == "paged_adamw_8bit"


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"method": "sft"}, "max_length"),
        ({"method": "dpo", "max_length": None}, "max_length"),
        ({"max_prompt_length": None}, "max_prompt_length"),
        ({"max_completion_length": None}, "max_completion_length"),
        ({"num_generations": None}, "num_generations"),
        ({"num_generations": 3}, "num_generations"),
        ({"num_generations": 32}, "num_generations"),
        ({"steps_per_generation": 1}, "num_generations"),
        ({"per_device_eval_batch_size": 4}, "per_device_eval_batch_size"),
        ({"lora": None}, "lora"),
        ({"quantization": "int8", "lora": None}, "lora"),
        ({"kbit_preparation": True, "quantization": "none"}, "kbit_preparation"),
        ({"stack": "transformers-5"}, "method"),
        ({"stack": "transformers-4.48", "method": "dpo", "max_length": 9}, "method"),
        ({"stack": "transformers-5", "method": "sft", "max_length": 9, "loss": "chunked"}, "loss"),
    ],
)
def test_rules_between_fields_name_the_field_to_change(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(FieldError) as caught:
        parse_job({**GRPO, **changes})
    assert caught.value.field == field
    assert caught.value.hint


def test_a_group_may_span_prompts_of_one_generate_call() -> None:
    assert parse_job({**GRPO, "steps_per_generation": 2}).generation_batch_size == 8
    assert parse_job({**GRPO, "num_generations": 16}).num_generations == 16


def test_full_fine_tuning_and_reentrant_without_checkpointing_are_allowed() -> None:
    job = parse_job({**SFT, "quantization": "none", "lora": None, "gradient_checkpointing": False, "use_reentrant": True})
    assert job.lora is None


@pytest.mark.parametrize("key", ["model", "method"])
def test_required_keys(key: str) -> None:
    with pytest.raises(FieldError) as caught:
        parse_job({name: value for name, value in GRPO.items() if name != key})
    assert caught.value.field == key


def test_something_else_than_a_mapping_is_refused() -> None:
    with pytest.raises(UsageError, match="job: a job is a mapping"):
        parse_job([GRPO])  # type: ignore[arg-type]


# --- YAML and JSON text -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("written", "value"), [("3e-4", 3e-4), ("1.", 1.0), (".5", 0.5), ("1E+2", 100.0), ("0", 0.0), ("1e-05", 1e-5)])
def test_numbers_are_read_as_yaml_1_2_reads_them(tmp_path: Path, written: str, value: float) -> None:
    assert load_text(tmp_path, f"{{model: m, method: sft, max_length: 010, beta: {written}}}").beta == value
    assert load_text(tmp_path, "{model: m, method: sft, max_length: 010}").max_length == 10


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        ("# only a comment", "empty"),
        ("[1, 2]", "mapping"),
        ("model: a\nmodel: b", "given twice"),
        ("lora: {r: 1, r: 2}", "given twice"),
        ("model: &a x\nmethod: *a", "aliases"),
        ("model: !!python/object/apply:os.getcwd []", "tags"),
        ("model: !!timestamp x", "tags"),
        ("model: [", "not valid YAML"),
        ("model: a: b", "line 1, column 9"),
        ("model: a\n--- \nmodel: b", "not valid YAML"),
        ("[" * 5000, "nested"),
        ("- " * 5000, "nested"),
        ("model: " + "9" * 5000, "digits"),
        ("model: 0x" + "f" * 5000, "digits"),
        ("model: \x01", "not valid YAML"),
        ("? [a]\n: 1", "plain word"),
        ("<<: {model: a}", "unknown key '<<'"),
        ("1: 2", "unknown key '1'"),
        ("model: m\nmethod: sft\nmax_length: 1_000", "max_length"),
        ("model: m\nmethod: sft\nmax_length: 1:30", "max_length"),
        ("model: m\nmethod: sft\nmax_length: 5\npadding: yes", "padding"),
        ("model: m\nmethod: sft\nmax_length: 5\nbeta: .nan", "beta"),
        ("model: 2024-01-01 \nmethod: sft", "max_length"),
        ("model: x" + " " * MAX_TEXT_BYTES, "larger than"),
        (b"model: \xff", "UTF-8"),
    ],
    ids=lambda value: str(value)[:24],
)
def test_bad_yaml_is_an_error_that_begins_with_the_file(tmp_path: Path, text: str | bytes, reason: str) -> None:
    with pytest.raises(UsageError, match=reason) as caught:
        load_text(tmp_path, text)
    assert caught.value.message.startswith(f"{tmp_path / 'job.yaml'}: ")


def test_json_files_and_byte_order_marks_are_read(tmp_path: Path) -> None:
    assert load_text(tmp_path, json.dumps(GRPO, indent="\t"), "job.json") == parse_job(GRPO)
    assert load_text(tmp_path, b"\xef\xbb\xbf" + DESIGN.encode()) == parse_job(GRPO)
    assert load_text(tmp_path, DESIGN.replace("\n", "\r\n")) == parse_job(GRPO)


@pytest.mark.parametrize("name", ["missing.yaml", ".", "a\0b"])
def test_a_file_that_cannot_be_read_is_a_usage_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError):
        load_job(tmp_path / name)
    with pytest.raises(UsageError):
        next(read_jobs_jsonl(tmp_path / name))


# --- JSON lines ---------------------------------------------------------------------------------------------------------------


def test_each_line_gives_one_result_in_order(tmp_path: Path) -> None:
    good = json.dumps(GRPO).encode()
    lines = [
        good,
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b"\xff\xfe",
        json.dumps({**GRPO, "num_generations": 3}).encode(),
        b'{"model": "a", "model": "b"}',
        b'{"model": "' + b"a" * (3 * MAX_TEXT_BYTES) + b'"}',
        b"[" * 100_000,
        b'{"beta": NaN, "method": "sft", "model": "m"}',
        b'{"beta": ' + b"1" * 5000 + b"}",
        b'{"model": "\\ud800", "method": "sft", "max_length": 3}',
        b"   \r",
        good + b"\r",
        good + b" trailing",
        good,
    ]
    path = tmp_path / "jobs.jsonl"
    path.write_bytes(b"\n".join(lines))
    results = list(read_jobs_jsonl(path))
    assert len(results) == len(lines)
    assert [number for number, result in enumerate(results) if isinstance(result, Job)] == [0, 15, 17]
    for number, result in enumerate(results, start=1):
        if isinstance(result, LlamamathError):
            assert result.message.startswith(f"line {number}: "), result.message
    wrong = results[7]
    assert isinstance(wrong, FieldError) and wrong.field == "num_generations"


def test_a_final_newline_is_not_a_line_and_an_empty_file_has_none(tmp_path: Path) -> None:
    path = tmp_path / "jobs.jsonl"
    path.write_text(json.dumps(SFT) + "\n")
    assert len(list(read_jobs_jsonl(path))) == 1
    path.write_text("")
    assert list(read_jobs_jsonl(path)) == []


def test_a_line_of_exactly_the_limit_is_read(tmp_path: Path) -> None:
    line = json.dumps(SFT).ljust(MAX_TEXT_BYTES)
    path = tmp_path / "jobs.jsonl"
    path.write_text(f"{line}\n{line} \n{line}")
    assert [isinstance(result, Job) for result in read_jobs_jsonl(path)] == [True, False, True]


# --- writing ------------------------------------------------------------------------------------------------------------------

names = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=20) | st.sampled_from(
    ["null", "yes", "1e5", "3", "a: b", "a #b", "~/m", "-", "{x}", '"', "\\", "é", "./m", "C:/m", "0x1", "meta-llama/Llama-3.2-1B", "🙂"]
)
dtypes = st.sampled_from(vocabulary.DTYPES)
counts = st.integers(1, 64)
modules = st.lists(st.sampled_from(["q_proj", "v_proj", "layers.0.k_proj", "fc1"]), min_size=1, unique=True).map(tuple)
loras = st.builds(
    Lora,
    r=counts,
    lora_alpha=counts,
    lora_dropout=st.floats(0, 1, exclude_max=True),
    target_modules=st.just("all-linear") | modules | st.just(r".*\.(q|v)_proj"),
    dtype=dtypes,
    use_dora=st.booleans(),
)


@st.composite
def jobs(draw: st.DrawFn) -> Job:
    """Any valid job."""
    stack = find_stack(draw(st.sampled_from(vocabulary.STACKS)))
    method = draw(st.sampled_from(stack.methods))
    quantization = draw(st.sampled_from(vocabulary.QUANTIZATIONS))
    group = draw(st.integers(2, 16))
    length = counts if method == "grpo" else st.none() | counts
    return Job(
        model=draw(names),
        method=method,
        stack=stack.name,
        quantization=quantization,
        dtype=draw(dtypes),
        lora=draw(st.none() | loras) if quantization == "none" else draw(loras),
        per_device_train_batch_size=draw(counts) * (group if method == "grpo" else 1),
        gradient_accumulation_steps=draw(counts),
        max_length=draw(st.none() | counts) if method == "grpo" else draw(counts),
        max_prompt_length=draw(length),
        max_completion_length=draw(length),
        num_generations=group,
        beta=draw(st.floats(0, 1000)),
        padding=draw(st.booleans()),
        gradient_checkpointing=draw(st.booleans()),
        use_reentrant=draw(st.booleans()),
        kbit_preparation=quantization != "none" and draw(st.booleans()),
        attn_implementation=draw(st.sampled_from(vocabulary.ATTENTIONS)),
        loss=draw(st.sampled_from(stack.losses)),
        optim=draw(st.sampled_from(vocabulary.OPTIMIZERS)),
        offload=tuple(draw(st.lists(st.sampled_from(vocabulary.OFFLOADS), unique=True))),
        rollout=Rollout(engine=draw(st.sampled_from(vocabulary.ENGINES))),
        mixed_precision=draw(st.none() | st.booleans()),
        steps_per_generation=draw(st.none() | counts),
        num_iterations=draw(counts),
        precompute_ref_log_probs=draw(st.booleans()),
        per_device_eval_batch_size=draw(st.none() | st.just(group)),
        num_images=draw(st.integers(0, 3)),
        fused_kernels=draw(st.booleans()),
    )


@settings(max_examples=60, deadline=None)
@given(jobs())
def test_every_valid_job_survives_yaml_and_json(tmp_path_factory: pytest.TempPathFactory, job: Job) -> None:
    check_job(job)
    assert parse_job(job_to_dict(job)) == job
    assert parse_job(json.loads(json.dumps(job_to_dict(job)))) == job
    folder = tmp_path_factory.mktemp("job")
    assert load_text(folder, dump_job(job)) == job


def test_the_written_job_follows_the_design(tmp_path: Path) -> None:
    text = dump_job(parse_job(GRPO))
    design_keys = [line.split(":")[0] for line in DESIGN.strip().splitlines()]
    assert [line.split(":")[0] for line in text.splitlines()] == design_keys
    assert list(job_to_dict(parse_job(GRPO))) == list(JOB_FIELDS)
    assert "lora: {r: 16, lora_alpha: 32, lora_dropout: 0.0, target_modules: all-linear, dtype: bfloat16}\n" in text
    full = dump_job(parse_job({**SFT, "quantization": "none", "lora": None, "num_images": 2}))
    assert "full fine-tuning" in full and "num_images: 2" in full
    assert set(LORA_FIELDS) >= {"r", "dtype"}


@settings(max_examples=150, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(JOB_FIELDS) | st.text(max_size=5),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["sft", "grpo", "nf4"]),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(LORA_FIELDS), inner, max_size=3),
            max_leaves=4,
        ),
    )
)
def test_whatever_comes_in_the_answer_is_a_job_or_a_usage_error(data: dict[str, Any]) -> None:
    try:
        job = parse_job(data)
    except UsageError as error:
        assert error.message.startswith("job: ")
    else:
        check_job(job)


@settings(max_examples=150, deadline=None)
@given(st.text(st.sampled_from("model:ethdsftlra \n-[]{},'\"&*!#%@`0123e.~?|>\t"), max_size=60))
def test_whatever_text_comes_in_the_answer_is_a_job_or_a_usage_error(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    try:
        load_text(tmp_path_factory.mktemp("job"), text)
    except UsageError as error:
        assert error.message


def test_parsing_is_fast_and_needs_no_yaml() -> None:
    values = job_to_dict(parse_job(GRPO))
    seconds = min(timeit.repeat(lambda: parse_job(values), number=200, repeat=5)) / 200
    assert seconds < 200e-6  # about 16 microseconds on the machine it was written on
    script = f"""
import sys
from llamamath.planner.job_files.job_file import parse_job
from llamamath.planner.job_files.job_text import dump_job
dump_job(parse_job({GRPO!r}))
sys.exit("yaml" in sys.modules or "torch" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
