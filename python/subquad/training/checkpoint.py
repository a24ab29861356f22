"""Checkpoints: one safetensors file, written atomically, read with clear errors."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from subquad.training.errors import CommandError

FORMAT = "subquad.lm"
VERSION = 1


@dataclass(frozen=True)
class Checkpoint:
    """The content of a file.

    Attributes:
        path: where it was read.
        metadata: JSON values of the header, without format and version.
        tensors: by name.
    """

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, Tensor]

    def part(self, name: str) -> dict[str, Tensor]:
        """Return the tensors ``name.*`` under the rest of their names."""
        prefix = f"{name}."
        return {
            key.removeprefix(prefix): tensor
            for key, tensor in self.tensors.items()
            if key.startswith(prefix)
        }


def save(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]
) -> None:
    """Write a checkpoint so that ``path`` is always a whole one, the old or the new.

    The file is written beside its place, brought to the disk, and renamed.

    Raises:
        CommandError: it cannot be written; the old file is intact.
    """
    header = {name: json.dumps(value) for name, value in metadata.items()}
    header |= {"format": FORMAT, "format_version": str(VERSION)}
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        data = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
        save_file(data, temporary, header)
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    except (OSError, SafetensorError) as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise CommandError(f"{path}: cannot write the checkpoint: {error}") from None


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def load(path: Path, parts: tuple[str, ...] = ()) -> Checkpoint:
    """Read a checkpoint.

    Args:
        path: the file, or the folder of a run, which means its ``last.safetensors``.
        parts: read only tensors ``part.*`` of these; all by default.

    Raises:
        CommandError: a missing, damaged or foreign file.
    """
    if path.is_dir():
        path = path / "last.safetensors"
    if not path.is_file():
        raise CommandError(f"{path}: no such checkpoint")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = _metadata(path, file.metadata())
            tensors = {
                name: file.get_tensor(name)
                for name in file.keys()
                if not parts or name.split(".", 1)[0] in parts
            }
    except (OSError, SafetensorError) as error:
        raise CommandError(f"{path}: not a whole safetensors file: {error}") from None
    return Checkpoint(path, metadata, tensors)


def _metadata(path: Path, header: Mapping[str, str] | None) -> dict[str, Any]:
    values = dict(header or {})
    if values.pop("format", None) != FORMAT:
        raise CommandError(f"{path}: not a checkpoint of a subquad language model")
    version = values.pop("format_version", "none")
    if version != str(VERSION):
        raise CommandError(
            f"{path}: checkpoint format must be {VERSION}, got {version}; "
            "use the version of subquad that wrote it"
        )
    try:
        return {name: json.loads(value) for name, value in values.items()}
    except json.JSONDecodeError as error:
        raise CommandError(f"{path}: damaged header: {error}") from None
