"""A small model, and what is read from the folder of its run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

TINY = (
    "--layers 1 --width 16 --heads 2 --context 32 --batch 4 --valid-tokens 200 "
    "--device cpu --no-tensorboard"
).split()
INTERRUPTED = Path(__file__).with_name("interrupted.py")


def records(folder: Path, event: str) -> list[dict[str, Any]]:
    """The records of an event, without what depends on the clock."""
    lines = (folder / "log.jsonl").read_text().splitlines()
    found = [record for record in map(json.loads, lines) if record["event"] == event]
    for record in found:
        record.pop("tokens_per_second", None)
    return found


def python(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run Python with these arguments, two threads at most."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
        check=False,
    )
