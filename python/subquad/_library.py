"""Finds the operator library, checks that it fits this torch, and loads it.

Nothing here imports more than torch, and nothing is logged: a library that does
not fit raises one ImportError that says what to do.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

_FOLDER = Path(__file__).parent


def library_path() -> Path:
    """Returns where the operator library lies (``libsubquad.so``)."""
    return _FOLDER / "libsubquad.so"


def build_info() -> dict[str, Any]:
    """Returns the record that the build left beside the library.

    Raises:
        ImportError: if the library was never built here.
    """
    try:
        record: dict[str, Any] = json.loads(
            (_FOLDER / "_build_info.json").read_text(encoding="utf-8")
        )
    except FileNotFoundError:
        raise ImportError(
            f"subquad: the operator library is not built in {_FOLDER}. Install the "
            "package (pip install .) or, for development, pip install -e ."
        ) from None
    return record


def _minor(version: str) -> str:
    return ".".join(version.split("+")[0].split(".")[:2])


def check(record: dict[str, Any], torch_version: str) -> None:
    """Refuses a torch of another minor release than the library was built for.

    Args:
        record: the build record.
        torch_version: ``torch.__version__`` of the running Python.

    Raises:
        ImportError: naming both versions and the remedy.
    """
    built, found = _minor(record["torch"]), _minor(torch_version)
    if built != found:
        raise ImportError(
            f"subquad {record['version']} was built for torch {built} and found torch "
            f"{torch_version}. Install torch {built} (pip install "
            f"'torch=={built}.*'), or a subquad that was built for torch {found}."
        )


def check_cuda(record: dict[str, Any], torch_cuda: str | None) -> None:
    """Refuses a CPU build of torch where the library needs CUDA's libraries.

    Args:
        record: the build record.
        torch_cuda: ``torch.version.cuda`` of the running Python.

    Raises:
        ImportError: with the remedy.
    """
    if record["cuda"] and torch_cuda is None:
        raise ImportError(
            f"subquad {record['version']} was built with CUDA kernels for torch "
            f"{record['torch']} and found a CPU build of torch. Install a CUDA build "
            "of torch, or build subquad from source with -DSUBQUAD_CUDA=off."
        )


def load() -> None:
    """Checks the build record and registers the operators.

    Raises:
        ImportError: if the library is missing or does not fit this torch.
    """
    record = build_info()
    check(record, torch.__version__)
    check_cuda(record, torch.version.cuda)
    path = library_path()
    try:
        torch.ops.load_library(str(path))  # type: ignore[no-untyped-call]
    except OSError as error:
        raise ImportError(
            f"subquad: cannot load {path}: {error}. Reinstall subquad with the torch "
            f"that you use ({torch.__version__})."
        ) from error
