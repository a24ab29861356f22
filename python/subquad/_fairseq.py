"""Whether fairseq is here, what to do if not, and the folder that it imports."""

from __future__ import annotations

import importlib
import importlib.util
from importlib import metadata
from pathlib import Path

_REMEDY = "pip install 'subquad[fairseq]'"


def user_dir() -> Path:
    """Return the folder for fairseq's ``--user-dir``."""
    return Path(__file__).parent / "fairseq" / "plugin" / "subquad_fairseq"


def missing() -> str | None:
    """Say in one sentence why fairseq cannot be used, None if it can.

    Does not import fairseq.
    """
    if importlib.util.find_spec("fairseq") is None:
        return f"fairseq is not installed: {_REMEDY}"
    try:
        version = metadata.version("fairseq")
    except metadata.PackageNotFoundError:
        return None  # another distribution brings the package
    if version.split(".")[:3] == ["0", "12", "2"]:
        return (
            f"fairseq {version} is not supported, for it does not import on Python "
            f"3.11: pip uninstall fairseq, then {_REMEDY}"
        )
    return None


def require() -> None:
    """Import fairseq.

    Raises:
        ImportError: It is absent, not supported, or fails; says the remedy.
    """
    reason = missing()
    if reason is None:
        try:
            importlib.import_module("fairseq")
            return
        except Exception as error:  # dataclasses of old releases raise a ValueError
            reason = (
                f"fairseq cannot be imported ({type(error).__name__}: {error}): "
                f"{_REMEDY}"
            )
            raise ImportError(f"subquad.fairseq: {reason}") from error
    raise ImportError(f"subquad.fairseq: {reason}")
