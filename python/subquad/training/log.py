"""The records of a run: JSON lines always, TensorBoard where it is installed."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any, TextIO

from subquad.training.errors import CommandError


class RunLog:
    """Writes ``log.jsonl`` and, if asked, TensorBoard files into the folder of a run.

    Args:
        folder: of the run; None writes nothing (all processes but the first).
        step: of the checkpoint that is continued; later records are dropped, because
            the continued run writes them again.
        tensorboard: also write TensorBoard files.

    Raises:
        CommandError: the file cannot be written.
    """

    def __init__(
        self, folder: Path | None, *, step: int = 0, tensorboard: bool = False
    ) -> None:
        """Open the files."""
        self._file: TextIO | None = None
        self._board: Any = None
        if folder is None:
            return
        self.path = folder / "log.jsonl"
        try:
            kept = _records_until(self.path, step) if step else []
            temporary = self.path.with_name(".log.jsonl.tmp")
            temporary.write_text("".join(kept), encoding="utf-8")
            os.replace(temporary, self.path)
            self._file = self.path.open("a", encoding="utf-8")
        except OSError as error:
            raise self._failure(error) from None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(
                str(folder), purge_step=step + 1 if step else None
            )

    def __enter__(self) -> RunLog:
        """Return the log itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close the files."""
        if self._file is not None:
            self._file.close()
        if self._board is not None:
            self._board.close()

    def write(self, event: str, step: int, **values: Any) -> None:
        """Add one record."""
        if self._file is None:
            return
        try:
            record = {"event": event, "step": step, **values}
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()
        except OSError as error:
            raise self._failure(error) from None
        if self._board is not None:
            for name, value in values.items():
                if isinstance(value, int | float):
                    self._board.add_scalar(f"{event}/{name}", value, step)

    def _failure(self, error: OSError) -> CommandError:
        return CommandError(f"{self.path}: cannot write: {error.strerror}")


def use_tensorboard(wanted: bool | None) -> bool:
    """Return whether to write TensorBoard files.

    Args:
        wanted: as asked by the user; None where TensorBoard is installed, with a line
            on stderr where it is not.

    Raises:
        CommandError: wanted, but not installed.
    """
    if wanted is False:
        return False
    if importlib.util.find_spec("tensorboard") is not None:
        return True
    remedy = "pip install 'subquad[train]'"
    if wanted:
        raise CommandError(f"--tensorboard: TensorBoard is not installed: {remedy}")
    print(f"no TensorBoard files: it is not installed ({remedy})", file=sys.stderr)
    return False


def _records_until(path: Path, step: int) -> list[str]:
    if not path.exists():
        return []
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        try:
            record = json.loads(line)
        except json.JSONDecodeError:  # the line that a kill cut off
            continue
        if record["step"] <= step and record["event"] != "end":
            kept.append(line)
    return kept
