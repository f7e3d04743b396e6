"""Asking a machine questions that may fail: the answer, or None and a record of the failure beside it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

Answer = TypeVar("Answer")


def ask(errors: dict[str, object], field: str, question: Callable[[], Answer]) -> Answer | None:
    """`question()`, or None with the failure described in `errors[field]`.

    The one place that catches everything: drivers, ctypes and odd modules raise what they like, and a probe that dies on one field is worth
    nothing. The record keeps what was caught.
    """
    try:
        return question()
    except Exception as error:
        errors[field] = describe(error)
        return None


def describe(error: BaseException) -> dict[str, object]:
    """`{"type", "code", "message"}` of an exception; `code` is NVML's or the system's number, or None."""
    code = getattr(error, "value", None)
    if not isinstance(code, int):
        code = getattr(error, "errno", None)
    try:
        # a system error's text without its file name, which may tell who runs this
        message = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    except Exception:  # NVMLError asks the driver for its text, which may be gone
        message = ""
    return {"type": type(error).__name__, "code": code if isinstance(code, int) else None, "message": message[:200]}
