"""Measured costs of mechanisms over lengths, and the files that hold them."""

from __future__ import annotations

import importlib
import json
import math
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from subquad.training.errors import CommandError

Table = Mapping[str, Sequence[float | None]]
_KEYS = {"time": "time_ms", "memory": "memory_MB"}


@dataclass(frozen=True)
class Costs:
    """Costs of the same forward pass, by mechanism, softmax first.

    Attributes:
        lengths: In rising order.
        time: Milliseconds, None where nothing was measured.
        memory: MiB.
        reasons: What is missing, and why.
    """

    lengths: Sequence[int]
    time: Table
    memory: Table
    reasons: tuple[str, ...] = ()

    def quantities(self) -> dict[str, tuple[Table, float]]:
        """What was measured, with the factor by which CAB multiplies it."""
        found = {"memory": (self.memory, 1.0), "time": (self.time, 1e3)}
        return {name: pair for name, pair in found.items() if pair[0]}

    def to_json(self) -> dict[str, Any]:
        """What :func:`read_costs` reads."""
        return {
            "lengths": list(self.lengths),
            "time_ms": {name: list(row) for name, row in self.time.items()},
            "memory_MB": {name: list(row) for name, row in self.memory.items()},
            "reasons": list(self.reasons),
        }


def read_costs(path: str) -> Costs:
    """Read a file: JSON, or a workbook with the sheets of CAB's cost.xlsx.

    JSON is an object of ``lengths`` and, one or both, ``time_ms`` and ``memory_MB``:
    objects of a list of costs per mechanism. A sheet ``time`` or ``memory`` has the
    lengths in its first line, after an empty cell, and below a line per mechanism.

    Raises:
        CommandError: It cannot be read or is not as described.
    """
    read = _read_workbook if Path(path).suffix.lower() == ".xlsx" else _read_json
    try:
        lengths, tables = read(path)
        checked = {
            quantity: {name: _row(name, row, lengths) for name, row in table.items()}
            for quantity, table in tables.items()
        }
    except OSError as error:
        raise CommandError(f"{path}: cannot read: {error.strerror}") from None
    except ValueError as error:
        raise CommandError(f"{path}: {error}") from None
    for quantity, table in checked.items():
        if len(table) < 2:
            raise CommandError(
                f"{path}: {quantity} needs softmax and another mechanism, got "
                f"{len(table)}"
            )
    return Costs(lengths, checked.get("time", {}), checked.get("memory", {}))


def _read_json(path: str) -> tuple[list[int], dict[str, dict[str, Any]]]:
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"not JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError("expected an object with lengths, time_ms and memory_MB")
    tables = {
        quantity: content[key] for quantity, key in _KEYS.items() if content.get(key)
    }
    if not tables or not all(isinstance(table, dict) for table in tables.values()):
        raise ValueError("expected time_ms or memory_MB with a list per mechanism")
    return _lengths(content.get("lengths")), tables


def _read_workbook(path: str) -> tuple[list[int], dict[str, dict[str, Any]]]:
    try:
        openpyxl = importlib.import_module("openpyxl")
    except ImportError:
        raise ValueError(
            'openpyxl is not installed: pip install "subquad[bench]"'
        ) from None
    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
    except (zipfile.BadZipFile, KeyError) as error:
        raise ValueError(f"not a workbook: {error}") from None
    lengths: list[int] = []
    tables: dict[str, dict[str, Any]] = {}
    for quantity in _KEYS:
        if quantity not in book.sheetnames:
            continue
        head, *rows = book[quantity].iter_rows(values_only=True)
        found = _lengths([cell for cell in head[1:] if cell is not None])
        if lengths not in ([], found):
            raise ValueError("its sheets differ in the lengths")
        lengths = found
        tables[quantity] = {
            str(row[0]): list(row[1 : len(found) + 1]) for row in rows if row[0]
        }
    if not tables:
        raise ValueError("expected a sheet time or memory")
    return lengths, tables


def _lengths(found: Any) -> list[int]:
    try:
        lengths = [int(value) for value in found]
    except (TypeError, ValueError):
        lengths = []
    if not lengths or lengths[0] < 1 or lengths != sorted(set(lengths)):
        raise ValueError(f"expected positive lengths in rising order, got {found!r}")
    return lengths


def _row(name: str, row: Any, lengths: Sequence[int]) -> list[float | None]:
    if not isinstance(row, list) or len(row) != len(lengths):
        raise ValueError(f"{name}: expected {len(lengths)} costs, got {row!r}")
    costs: list[float | None] = []
    for cell in row:
        try:
            cost = None if cell is None else float(cell)
        except (TypeError, ValueError):
            cost = math.nan
        if cost is not None and not 0 <= cost < math.inf:
            raise ValueError(f"{name}: expected costs of at least 0, got {cell!r}")
        costs.append(cost)
    return costs
