"""Other packages that take part where they are installed.

A contender that needs one asks :func:`peer` for it when it is built, with
``extra="peers"`` in its :class:`~subquad.benchmarks.registry.Contender`.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from subquad.benchmarks.registry import UnavailableError

# Name on PyPI: name to import.
PEERS = {
    "linear-attention-transformer": "linear_attention_transformer",
    "local-attention": "local_attention",
    "performer-pytorch": "performer_pytorch",
    "pytorch-fast-transformers": "fast_transformers",
    "x-transformers": "x_transformers",
}


def peer(package: str, submodule: str = "") -> Any:
    """The module of a package of ``PEERS``, or one in it.

    Raises:
        UnavailableError: It is not installed. Anything else that its import raises
            is shown as the contender's failure.
    """
    module = PEERS[package]
    if importlib.util.find_spec(module) is None:
        raise UnavailableError(f"not installed: pip install {package}")
    return importlib.import_module(f"{module}.{submodule}" if submodule else module)
