"""Memory that a process holds and has held."""

from __future__ import annotations

import sys
from pathlib import Path

import torch


def memory(device: torch.device) -> int:
    """Return the bytes in use: resident set, or allocated on the GPU."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return _status("VmRSS") or _largest_resident_set()


def peak_memory(device: torch.device) -> int:
    """Return the most bytes in use since the process started."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # Linux counts the parent of a new process into getrusage, but not into VmHWM.
    return _status("VmHWM") or _largest_resident_set()


def available_memory() -> int | None:
    """Return the bytes that processes can still get, None where unknown."""
    return _kilobytes("/proc/meminfo", "MemAvailable")


def _status(field: str) -> int | None:
    return _kilobytes("/proc/self/status", field)


def _kilobytes(path: str, field: str) -> int | None:
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    return None


def _largest_resident_set() -> int:
    import resource

    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else size * 1024
