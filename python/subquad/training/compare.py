"""Training the same model with several mechanisms, side by side."""

from __future__ import annotations

import json
import multiprocessing
import signal
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from subquad.training.config import ModelConfig, RunConfig
from subquad.training.errors import report_errors
from subquad.training.generate import continue_text
from subquad.training.lm import train
from subquad.training.log import use_tensorboard
from subquad.training.processes import first, processes

_PROMPT = "The "
_SAMPLE = 240  # tokens
_MIB = 2**20
_COLUMNS: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "attention": lambda end: str(end["attention"]),
    "bits/char": lambda end: f"{end['bits_per_character']:.3f}",
    "tokens/s": lambda end: f"{end['tokens_per_second']:,.0f}",
    "steps": lambda end: str(end["step"]),
    "training": lambda end: f"{end['seconds']:.1f} s",
    "peak memory": lambda end: f"{end['peak_memory'] / _MIB:,.0f} MiB",
    "of it at start": lambda end: f"{end['start_memory'] / _MIB:,.0f} MiB",
}


def compare(configs: Sequence[ModelConfig], run: RunConfig) -> int:
    """Train one model after the other and print their results.

    Each trains in a process of its own, so that its peak memory is its own.

    Args:
        configs: that differ in the mechanism.
        run: for all; each gets a folder of its own in ``run.out``.

    Returns:
        The exit code: 0, or that of the first run that failed or was stopped.

    Raises:
        CommandError: TensorBoard is asked for, but not installed.
    """
    run = replace(run, tensorboard=use_tensorboard(run.tensorboard))
    folders = [Path(run.out) / config.attention for config in configs]
    for config, folder in zip(configs, folders, strict=True):
        code = _run_apart(config, replace(run, out=str(folder)))
        if code:
            return code
    print(table([last_record(folder) for folder in folders]))
    for config, folder in zip(configs, folders, strict=True):
        print(f"\n{config.attention}:")
        print(textwrap.indent(_sample(folder, run.device), "  | "))
    print(f"\nsubquad generate {folders[0]} --prompt '{_PROMPT}'")
    return 0


def table(ends: Sequence[Mapping[str, Any]]) -> str:
    """Return a plain table of the last records of runs."""
    rows = [
        list(_COLUMNS),
        *([cell(end) for cell in _COLUMNS.values()] for end in ends),
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    )


def stopped(end: Mapping[str, Any], folder: str) -> int:
    """Tell how to go on with a run that a signal ended and return the exit code."""
    if first():
        print(
            f"{end['attention']}: stopped at step {end['step']}; to go on: "
            f"subquad train lm --resume {folder}",
            file=sys.stderr,
        )
    return 128 + int(end["signal"])


def last_record(folder: Path) -> dict[str, Any]:
    """Return the record of the end of a run."""
    lines = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    record: dict[str, Any] = json.loads(lines[-1])
    return record


def _sample(folder: Path, device: str) -> str:
    with processes(device) as ranks:
        pieces = continue_text(
            folder, _PROMPT, _SAMPLE, temperature=0.6, device=ranks.device
        )
        return "".join(pieces)


def _run_apart(config: ModelConfig, run: RunConfig) -> int:
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_train, args=(config, run))
    process.start()
    # Ctrl-C reaches both processes: the other one saves and ends, this one waits.
    interrupt = signal.signal(signal.SIGINT, lambda number, frame: None)
    terminate = signal.signal(signal.SIGTERM, lambda number, frame: process.terminate())
    try:
        process.join()
    finally:
        signal.signal(signal.SIGINT, interrupt)
        signal.signal(signal.SIGTERM, terminate)
    code = process.exitcode or 0
    return 128 - code if code < 0 else code


def _train(config: ModelConfig, run: RunConfig) -> None:
    def command() -> int:
        end = train(config, run)
        return stopped(end, run.out) if end["signal"] else 0

    sys.exit(report_errors(command))
