"""TRL arguments as Python text that builds them when it is run: `llamamath plan --emit trl`."""

from __future__ import annotations

from collections.abc import Mapping

from llamamath.planner.trl.arguments import TrlArguments


def python_text(arguments: TrlArguments, heading: str) -> str:
    """The arguments as a Python module that builds them when it is run. heading: its docstring, one line."""
    quoted = heading.replace("\\", "/").replace('"', "'")
    parts = [f'"""{quoted}"""', "import os\n\n" + "\n".join(_environment(arguments)), _imports(arguments)]
    parts += [f"# Not expressed below: {words}" for words in arguments.unexpressed]
    model = dict(arguments.model)
    if arguments.quantization is not None:
        parts.append(_call("quantization_config", "BitsAndBytesConfig", arguments.quantization))
        model["quantization_config"] = _Name("quantization_config")
    if arguments.lora is not None:
        parts.append(_call("peft_config", "LoraConfig", arguments.lora))
    parts.append(_call("args", arguments.config_class, arguments.config))
    return "\n\n".join(parts) + "\n\n\n" + _load(arguments, model) + "\n"


class _Name(str):
    """A variable of the text: written without quotes."""

    def __repr__(self) -> str:
        return str(self)


def _environment(arguments: TrlArguments) -> list[str]:
    return [f'os.environ.setdefault("{name}", "{value}")  # before torch is imported' for name, value in arguments.environment.items()]


def _imports(arguments: TrlArguments) -> str:
    peft = [
        name for name, used in (("LoraConfig", arguments.lora), ("prepare_model_for_kbit_training", arguments.kbit_preparation)) if used
    ]
    transformers = [arguments.model_class, *(["BitsAndBytesConfig"] if arguments.quantization else [])]
    lines = ["import torch", f"from peft import {', '.join(peft)}" if peft else "", f"from transformers import {', '.join(transformers)}"]
    return "\n".join(line for line in [*lines, f"from trl import {arguments.config_class}, {arguments.trainer}"] if line)


def _call(variable: str, function: str, values: Mapping[str, object]) -> str:
    lines = [f"    {name}={_literal(value)}," for name, value in values.items()]
    return "\n".join([f"{variable} = {function}(", *lines, ")"])


def _literal(value: object) -> str:
    if isinstance(value, str) and not isinstance(value, _Name):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_literal(key)}: {_literal(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_literal(item) for item in value) + "]"
    return repr(value)


def _load(arguments: TrlArguments, model: Mapping[str, object]) -> str:
    lines = [
        "def make_trainer(**data):",
        f"    model = {arguments.model_class}.from_pretrained(",
        f"        {_literal(arguments.model_name)},",
    ]
    lines += [*(f"        {name}={_literal(value)}," for name, value in model.items()), "    )"]
    if arguments.kbit_preparation is not None:
        gradient = arguments.kbit_preparation["use_gradient_checkpointing"]
        lines.append(f"    model = prepare_model_for_kbit_training(model, use_gradient_checkpointing={gradient})")
    peft = ", peft_config=peft_config" if arguments.lora is not None else ""
    data = "train_dataset, reward_funcs" if arguments.trainer == "GRPOTrainer" else "train_dataset"
    lines.append(f"    return {arguments.trainer}(model=model, args=args{peft}, **data)  # data: {data}")
    return "\n".join(lines)
