"""Files that a benchmark writes: whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from pathlib import Path
from typing import Any

from subquad.training.errors import CommandError


def check_outputs(*paths: str | None) -> None:
    """Find out before a long measurement whether its results can be written.

    Raises:
        CommandError: A folder is missing, not a folder or not writable.
    """
    for path in paths:
        if not path:
            continue
        folder = Path(path).parent
        if Path(path).is_dir():
            raise _failure(path, errno.EISDIR)
        if not folder.exists():
            raise _failure(path, errno.ENOENT)
        if not folder.is_dir():
            raise _failure(path, errno.ENOTDIR)
        if not os.access(folder, os.W_OK):
            raise _failure(path, errno.EACCES)


def write(path: str, content: bytes | str) -> None:
    """Write a file beside its place and rename it, so that an old one stays whole.

    Raises:
        CommandError: It cannot be written.
    """
    data = content.encode() if isinstance(content, str) else content
    target = Path(path)
    try:
        if target.exists() and not target.is_file():  # a pipe, /dev/stdout
            target.write_bytes(data)
            return
        temporary = target.with_name(f".{target.name}.tmp")
        try:
            temporary.write_bytes(data)
            os.replace(temporary, target)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
    except OSError as error:
        raise _failure(path, error.errno or 0) from None


def write_json(path: str, records: Any) -> None:
    """Write records as JSON.

    Raises:
        CommandError: The file cannot be written.
    """
    write(path, json.dumps(records, indent=1) + "\n")


def _failure(path: str, number: int) -> CommandError:
    return CommandError(f"cannot write {path}: {os.strerror(number)}")
