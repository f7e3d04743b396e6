"""The options that commands share, with their help: what a job is made of, and what it is judged against.

Words and numbers are checked where job files are (`planner/job_files/job_fields.py`), so a flag and a file get the same answer.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer


def _job(name: str, metavar: str, words: str) -> Any:
    return typer.Option(name, metavar=metavar, help=words, rich_help_panel="The job")


def _device(name: str, metavar: str, words: str) -> Any:
    return typer.Option(name, metavar=metavar, help=words, rich_help_panel="What it is judged against")


def _output(name: str, metavar: str, words: str) -> Any:
    return typer.Option(*name.split(), metavar=metavar, help=words, rich_help_panel="Output")


# What it is judged against
Gpus = Annotated[
    list[str] | None, _device("--gpu", "GPU", "auto, cuda:0, cpu, a name such as rtx3060, or a size such as 12GiB. May be repeated.")
]
OneGpu = Annotated[str, _device("--gpu", "GPU", "auto, cuda:0, cpu, a name such as rtx3060, or a size such as 12GiB.")]
Vram = Annotated[str | None, _device("--vram", "SIZE", "Use no more GPU memory than this: 10GiB.")]
Ram = Annotated[str | None, _device("--ram", "SIZE", "Use no more RAM than this: 32GiB.")]
Disk = Annotated[str | None, _device("--disk", "SIZE", "Use no more disk than this: 100GiB.")]
Hours = Annotated[float | None, _device("--hours", "X", "Take no longer than this, at worst.")]
Cost = Annotated[float | None, _device("--cost", "USD", "Cost no more rent than this, at worst.")]
UseTotal = Annotated[bool, _device("--use-total", "", "Judge against all of this machine's GPU, not what is free now.")]

# The job
RecipeName = Annotated[str | None, _job("--recipe", "NAME", "A paper's training, such as llama-math-3b: see `llamamath profiles`.")]
Method = Annotated[str | None, _job("--method", "WORD", "sft, grpo or dpo.")]
Quantization = Annotated[str | None, _job("--quantization", "WORD", "none, int8, nf4 or nf4-dq.")]
Dtype = Annotated[str | None, _job("--dtype", "WORD", "bfloat16, float16 or float32.")]
LoraRank = Annotated[int | None, _job("--lora-r", "N", "Rank of the adapters.")]
LoraDropout = Annotated[float | None, _job("--lora-dropout", "X", "Dropout before the adapters.")]
Targets = Annotated[str | None, _job("--target-modules", "NAMES", "all-linear, or names such as q_proj,v_proj.")]
Full = Annotated[bool, _job("--full", "", "Full fine-tuning: no LoRA, and no quantisation unless asked for.")]
Batch = Annotated[int | None, _job("--batch", "N", "Sequences (DPO: pairs) per device and step.")]
Accumulation = Annotated[int | None, _job("--accumulation", "N", "Micro-batches per step.")]
MaxLength = Annotated[int | None, _job("--max-length", "TOKENS", "SFT, DPO: prompt + completion.")]
MaxPrompt = Annotated[int | None, _job("--max-prompt-length", "TOKENS", "GRPO: prompt.")]
MaxCompletion = Annotated[int | None, _job("--max-completion-length", "TOKENS", "GRPO: completion.")]
Generations = Annotated[int | None, _job("--num-generations", "N", "GRPO: completions per prompt.")]
Beta = Annotated[float | None, _job("--beta", "X", "Weight of the reference model.")]
Checkpointing = Annotated[bool, _job("--checkpointing", "", "Recompute activations (the default).")]
NoCheckpointing = Annotated[bool, _job("--no-checkpointing", "", "Keep activations.")]
Padding = Annotated[bool, _job("--padding", "", "Ragged batches with a mask (the default).")]
Packed = Annotated[bool, _job("--packed", "", "Batches without padding.")]
Attention = Annotated[str | None, _job("--attn", "WORD", "sdpa, flash_attention_2 or eager.")]
Optim = Annotated[str | None, _job("--optim", "WORD", "transformers' name, such as paged_adamw_8bit.")]
Loss = Annotated[str | None, _job("--loss", "WORD", "chunked, full or liger.")]
StackName = Annotated[str | None, _job("--stack", "NAME", "Whose memory habits: trl-1.16, transformers-5, ...")]
Offload = Annotated[str | None, _job("--offload", "WORDS", "checkpoints,weights,optimizer: any of them, or none.")]
Engine = Annotated[str | None, _job("--engine", "WORD", "GRPO's rollouts: transformers or vllm.")]
EvalBatch = Annotated[int | None, _job("--eval-batch", "N", "Evaluate during training in batches of N.")]
Images = Annotated[int | None, _job("--images", "N", "Images per sequence (Llama 3.2 Vision).")]

# Output
Json = Annotated[bool, _output("--json", "", "Print one JSON document and nothing else.")]
Output = Annotated[str | None, _output("--output -o", "FILE", "Where the plan goes; - prints it. Without --json or --emit: plan.yaml.")]
