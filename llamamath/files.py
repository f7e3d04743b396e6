"""Writing a file so that a reader sees the old text or the new, never half of it."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from pathlib import Path

from llamamath.errors import UnavailableError, UsageError


def write_atomically(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` as UTF-8, line ends as given, to `path`: beside it under another name, fsync, rename over it.

    A crash at any moment leaves the old file or the new one, and an error leaves nothing beside it. An existing file keeps its
    permission bits; a symbolic link stays one, and the file it names is replaced. Something that is not a regular file (`/dev/stdout`,
    a pipe) is written to directly.

    Raises UsageError if the path cannot be a file (a directory, or a folder that does not exist), UnavailableError if the system refuses
    (permission, full disk, read-only).
    """
    target = Path(path)
    try:
        data = text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UsageError(f"cannot write {target}: the text is not valid Unicode ({error.reason})") from error
    try:
        _replace(Path(os.path.realpath(target)), data)
    except (IsADirectoryError, NotADirectoryError, FileNotFoundError) as error:
        raise UsageError(f"cannot write {target}: {_reason(error)}", "name a file in a folder that exists") from error
    except (OSError, ValueError) as error:
        raise UnavailableError(f"cannot write {target}: {_reason(error)}", "check permissions and free space there") from error


def _reason(error: Exception) -> str:
    """What the system says, without the path, which the message has already (and which may be the temporary one)."""
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error)


def _replace(target: Path, data: bytes) -> None:
    try:
        mode: int | None = target.stat().st_mode
    except FileNotFoundError:
        mode = None
    if mode is not None and stat.S_ISDIR(mode):
        raise IsADirectoryError(21, "is a directory")
    if mode is not None and not stat.S_ISREG(mode):
        with target.open("wb") as stream:
            stream.write(data)
        return
    aside = target.with_name(f".{target.name[:40]}.{secrets.token_hex(6)}.tmp")
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        if mode is not None:
            with contextlib.suppress(PermissionError):  # somebody else's file in a shared folder: the rename still counts
                os.chmod(aside, stat.S_IMODE(mode))
        os.replace(aside, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(aside)
        raise
    _sync_folder(target.parent)


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable where the system allows a folder to be synced (not on Windows)."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
