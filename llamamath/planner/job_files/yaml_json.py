"""Text of a configuration file -> plain values: YAML 1.2 and JSON, safe, strict and bounded.

PyYAML follows YAML 1.1, which reads `3e-4` as a *string*, `010` as eight, `yes` as true and `1:30` as ninety. People who write a job
file mean what YAML 1.2 says, so the loader here resolves only YAML 1.2's core types: null, true/false, integers, floats in
every usual notation (`3e-4`, `1.`, `.5`), strings. Repeated keys, aliases, tags, nesting beyond MAX_DEPTH and text beyond
MAX_TEXT_BYTES are errors, never a surprise later.
"""

from __future__ import annotations

import json
import re
import sys
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

from llamamath.errors import UsageError, shorten

MAX_TEXT_BYTES = 256 * 1024
"""Longest configuration file or JSON line: a job is about 1.5 KB, a plan with everything it rejected some tens of KB."""
MAX_DEPTH = 24
"""Deepest nesting accepted; a job needs two levels."""
MAX_DIGITS = 40
"""Longest integer accepted in YAML; Python itself refuses some thousands of decimal digits, but not of hexadecimal ones."""


def read_text(path: Path, *, max_bytes: int = MAX_TEXT_BYTES) -> str:
    """The UTF-8 text of `path` (`-` is standard input), of at most `max_bytes`. Raises UsageError saying why it cannot be read."""
    try:
        if str(path) == "-":
            content = sys.stdin.buffer.read(max_bytes + 1)
        else:
            with open(path, "rb") as file:
                content = file.read(max_bytes + 1)
    except FileNotFoundError as error:
        raise UsageError(f"{path}: no such file") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the path
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UsageError(f"{path}: cannot be read: {reason}") from error
    if len(content) > max_bytes:
        raise UsageError(f"{path}: larger than {max_bytes:,} bytes, so it is not a file of this kind")
    return decode(content, str(path))


def decode(content: bytes, source: str) -> str:
    """UTF-8 bytes -> text, a byte order mark dropped. Raises UsageError naming the first bad byte."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{source}: not UTF-8 text (byte {error.start})", "save the file as UTF-8") from error


def parse_json(text: str, source: str) -> object:
    """One JSON document. Repeated keys are an error. Raises UsageError."""
    try:
        return json.loads(text, object_pairs_hook=_unique_pairs)
    except json.JSONDecodeError as error:
        place = f"column {error.colno}" if error.lineno == 1 else f"line {error.lineno}, column {error.colno}"
        raise UsageError(f"{source}: not valid JSON: {error.msg} ({place})") from error
    except (ValueError, RecursionError) as error:  # a repeated key, an integer of thousands of digits, thousands of brackets
        reason = "nested too deeply" if isinstance(error, RecursionError) else shorten(str(error), 120)
        raise UsageError(f"{source}: not valid JSON: {reason}") from error


def _unique_pairs(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"key {shorten(repr(key), 60)} is given twice")
            seen.add(key)
    return found


def parse_yaml(text: str, source: str) -> object:
    """One YAML document, by the rules of this module. Raises UsageError with line and column."""
    import yaml

    try:
        return yaml.load(text, Loader=_loader())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        reason = shorten(str(error.problem or error.context), 160)
        raise UsageError(f"{source}: not valid YAML: {reason}{place}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # e.g. a control character, a number of thousands of digits
        raise UsageError(f"{source}: not valid YAML: {shorten(' '.join(str(error).split()), 160)}") from error


@cache
def _loader() -> Any:
    """The loader class, made on first use: importing yaml costs more than planning does."""
    import yaml
    from yaml.composer import Composer
    from yaml.constructor import ConstructorError, SafeConstructor
    from yaml.parser import Parser
    from yaml.reader import Reader
    from yaml.resolver import BaseResolver
    from yaml.scanner import Scanner

    def refuse(reason: str, mark: Any) -> NoReturn:
        raise ConstructorError(None, None, reason, mark)

    class StrictLoader(Reader, Scanner, Parser, Composer, SafeConstructor, BaseResolver):
        """YAML 1.2 core schema without aliases, other tags or repeated keys."""

        def __init__(self, stream: str) -> None:
            Reader.__init__(self, stream)
            Scanner.__init__(self)
            Parser.__init__(self)
            Composer.__init__(self)
            SafeConstructor.__init__(self)
            BaseResolver.__init__(self)
            self.depth = 0

        def compose_node(self, parent: Any, index: Any) -> Any:
            event = self.peek_event()  # type: ignore[no-untyped-call]
            if isinstance(event, yaml.AliasEvent):
                refuse("aliases (*name) are not accepted: write the value out", event.start_mark)
            if getattr(event, "tag", None) is not None:
                refuse(f"tags ({shorten(event.tag, 40)}) are not accepted", event.start_mark)
            self.depth += 1
            if self.depth > MAX_DEPTH:
                refuse(f"nested deeper than {MAX_DEPTH} levels", event.start_mark)
            node = super().compose_node(parent, index)
            self.depth -= 1
            return node

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            found: dict[Any, Any] = {}
            for key_node, value_node in node.value:
                key = self.construct_object(key_node, deep=True)
                if not isinstance(key, str | int | float | bool | None):
                    refuse("a key must be a plain word", key_node.start_mark)
                if key in found:
                    refuse(f"key {shorten(repr(key), 60)} is given twice", key_node.start_mark)
                found[key] = self.construct_object(value_node, deep=deep)
            return found

        def construct_integer(self, node: Any) -> int:
            text = self.construct_scalar(node)
            if len(text) > MAX_DIGITS:
                refuse(f"an integer of more than {MAX_DIGITS} digits", node.start_mark)
            return int(text, 0) if text[:2] in ("0x", "0o") else int(text)

    for kind, pattern, first in (
        ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
        ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
        ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
        ("float", r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?", list("-+.0123456789")),
        ("float", r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", list("-+.")),
    ):
        StrictLoader.add_implicit_resolver(f"tag:yaml.org,2002:{kind}", re.compile(rf"(?:{pattern})\Z"), first)
    StrictLoader.yaml_constructors = {
        f"tag:yaml.org,2002:{kind}": constructor
        for kind, constructor in {
            "null": SafeConstructor.construct_yaml_null,
            "bool": SafeConstructor.construct_yaml_bool,
            "int": StrictLoader.construct_integer,
            "float": SafeConstructor.construct_yaml_float,
            "str": SafeConstructor.construct_yaml_str,
            "seq": SafeConstructor.construct_yaml_seq,
            "map": SafeConstructor.construct_yaml_map,
        }.items()
    }
    StrictLoader.yaml_constructors[None] = SafeConstructor.construct_undefined
    return StrictLoader
