"""What the machine is and what it can do at best."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from subquad import _library
from subquad.benchmarks.peers import PEERS
from subquad.benchmarks.registry import Results, Run

# A product that stays in the caches of any server core.
_SIDE = 512
_COPIED_FLOATS = 16 << 20  # 64 MiB, more than most last-level caches

PRODUCT_FLOPS = 2 * _SIDE**3
COPY_BYTES = 2 * 4 * _COPIED_FLOATS  # read and written
COPY = "copy"
_PACKAGES = ("subquad", "torch", "numpy", *PEERS)


def rate_runs() -> dict[str, Run]:
    """Runs whose speed is the machine's: matrix products and a copy, float32.

    Of the two matrix products PyTorch carries, that of ``at::mm`` and oneDNN's, the
    faster is the machine's rate.
    """
    a, b = torch.randn(_SIDE, _SIDE), torch.randn(_SIDE, _SIDE)
    source = torch.randn(_COPIED_FLOATS)
    target = torch.empty_like(source)

    def product() -> Results:
        with torch.no_grad():
            return (F.linear(a, b),)

    def onednn_product() -> Results:
        linear = torch.ops.mkldnn._linear_pointwise
        return (linear(a, b, None, "none", [], ""),)

    def copy() -> Results:
        return (target.copy_(source),)

    runs = {"at::mm": product, COPY: copy}
    if torch._C._has_mkldnn:
        runs["oneDNN"] = onednn_product
    return runs


def rates(seconds: Mapping[str, float]) -> dict[str, Any]:
    """Rates from the seconds per call of :func:`rate_runs`."""
    products = {name: PRODUCT_FLOPS / t for name, t in seconds.items() if name != COPY}
    best = max(products, key=lambda name: products[name])
    return {
        "flops_per_second": products[best],
        "product": best,
        "products": products,
        "copy_bytes_per_second": COPY_BYTES / seconds[COPY],
    }


def describe() -> dict[str, Any]:
    """Machine, versions and commit."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "built_capabilities": _library.build_info()["cpu_capabilities"],
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in _PACKAGES},
        "commit": _commit(),
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    if package == "subquad":  # need not be installed to be imported
        return str(_library.build_info()["version"])
    if package == "torch":
        return str(torch.__version__)
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the checkout that this file is in, if it is in one."""
    root = Path(__file__).resolve().parents[1]
    if not (root / "csrc" / "library.cpp").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return answer.stdout.strip()
