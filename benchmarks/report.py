"""Tables for the eye, and JSON for everything else."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any

from subquad.benchmarks.crossover import softmax_of
from subquad.benchmarks.registry import Case, Entry

_PASSES = {"forward": "fwd", "both": "fwd+bwd"}


def listing(known: Iterable[Entry]) -> str:
    """Names of all benchmarks, with what they are."""
    rows = [(entry.name, entry.summary) for entry in known]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {summary}" for name, summary in rows)


def progress(case: Case | None) -> None:
    """Tell a terminal what is being measured; None clears the line."""
    if not sys.stderr.isatty():
        return
    text = "" if case is None else f"{case.entry} {_words(case.labels)} ..."
    print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def heading(records: dict[str, Any]) -> str:
    """Machine and versions."""
    machine = records["machine"]
    versions = [f"{k} {v}" for k, v in machine["versions"].items() if v]
    commit = f" ({machine['commit']})" if machine["commit"] else ""
    return (
        f"{machine['processor']}, {machine['cores']} cores, {machine['capability']}, "
        f"{records['threads']} threads\n{', '.join(versions)}{commit}"
    )


def table(entry: Entry, cases: Sequence[dict[str, Any]]) -> str:
    """The cases of an entry, a line each, with what has to be said below."""
    lines = [f"{entry.name}: {entry.summary}"]
    if not cases:
        return f"{lines[0]}\nno cases"
    names = list(cases[0]["contenders"])
    library, others = names[0], names[1:]
    shown = [n for n in others if any(_ran(c["contenders"][n]) for c in cases)]
    head = list(cases[0]["labels"])
    head += ["ms", "+-%", "GF/s", "% rate", "x roof", "memory", *shown]
    rows = [head]
    for case in cases:
        labels = [_short(k, v) for k, v in case["labels"].items()]
        answer = case["contenders"][library]
        if case["error"]:
            rows.append([*labels, case["error"]])
            continue
        seconds = answer["median_seconds"]
        rows.append(
            [
                *labels,
                _significant(1e3 * seconds),
                f"{100 * answer['spread']:.0f}",
                f"{case['useful_flops'] / seconds / 1e9:.0f}",
                f"{100 * answer['useful_share']:.0f}",
                f"{answer['times_expected']:.2f}",
                f"{answer['extra_memory']:.2f}" if "extra_memory" in answer else "-",
                *(_times(case["contenders"][name]) for name in shown),
            ]
        )
    lines += aligned(rows)
    lines += _notes(cases, names)
    lines += _crossovers(cases)
    return "\n".join(lines)


def closing(records: dict[str, Any]) -> str:
    """The machine's rates and what the columns are."""
    share = f"{100 * records['expected_share']:.0f} %"
    lines = []
    rates = records["rates"]
    if rates is not None:
        lines.append(
            f"machine: {rates['flops_per_second'] / 1e9:.0f} GF/s, the better of "
            "at::mm and oneDNN on 512 x 512 x 512 float32; copy "
            f"{rates['copy_bytes_per_second'] / 1e9:.1f} GB/s, read and written"
        )
    lines += [
        "ms: median of turns; +-%: distance of their quartiles; GF/s, % rate: useful",
        "operations, of the machine's rate; x roof: time over that of the useful",
        f"operations at {share} of the rate plus every tensor copied once; memory:",
        "peak beyond inputs and results over q + k + v + output; the other columns:",
        "time over the library's, less than 1 where the library is slower; !: reads",
        "the future.",
    ]
    return "\n".join(lines)


def _ran(answer: dict[str, Any]) -> bool:
    return "median_seconds" in answer


def _short(label: str, value: str | int) -> str:
    if label == "pass":
        return _PASSES[str(value)]
    return str(value)


def _words(labels: Any) -> str:
    return " ".join(_short(k, v) for k, v in labels.items())


def _significant(number: float) -> str:
    return f"{number:.3g}" if number < 1000 else f"{number:.0f}"


def _times(answer: dict[str, Any]) -> str:
    if not _ran(answer):
        return "wrong" if answer["status"] == "wrong" else "-"
    mark = "!" if answer.get("leaks") else ""
    return f"{_significant(answer['times_library'])}x{mark}"


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table; shorter rows than the first do not widen its columns."""
    full = [row for row in rows if len(row) == len(rows[0])]
    widths = [max(len(cell) for cell in column) for column in zip(*full, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) for cell, width in zip(row, widths, strict=False)
        ).rstrip()
        for row in rows
    ]


def _notes(cases: Sequence[dict[str, Any]], names: Sequence[str]) -> list[str]:
    """What is missing or not as it seems, each reason once."""
    places: dict[tuple[str, str], list[str]] = {}
    for case in cases:
        if case["error"]:
            continue
        library, *others = names
        reasons = {name: case["contenders"][name].get("reason") for name in others}
        for name in others:
            answer = case["contenders"][name]
            if answer.get("leaks"):
                reasons[name] = (
                    "leaks: changing the future changes the past by "
                    f"{answer['past_change']:.2g} of its largest number"
                )
        reasons["memory"] = case["contenders"][library].get("memory_reason")
        for name in others:
            if case["contenders"][name]["status"] == "shared":
                reasons[name] = "measured once, with an earlier case"
        for name, reason in reasons.items():
            if reason is not None:
                where = places.setdefault((name, reason), [])
                where.append(_words(case["labels"]))
    return [
        f"- {name}: {reason}"
        + ("" if len(where) == len(cases) else f" ({_abbreviated(where)})")
        for (name, reason), where in places.items()
    ]


def _abbreviated(places: list[str]) -> str:
    if len(places) <= 3:
        return "; ".join(places)
    return f"{places[0]}; {places[1]}; and {len(places) - 2} more"


def _crossovers(cases: Sequence[dict[str, Any]]) -> list[str]:
    """From which measured length on the library is faster than full softmax."""
    groups: dict[str, list[tuple[int, float]]] = {}
    for case in cases:
        labels = case["labels"]
        answer = softmax_of(case)
        if case["error"] or answer is None or not _ran(answer):
            continue
        group = _words({k: v for k, v in labels.items() if k != "L"})
        groups.setdefault(group, []).append((labels["L"], answer["times_library"]))
    lines = []
    for group, points in groups.items():
        if len(points) < 2:
            continue
        points.sort()
        faster = [length for length, times in points if times > 1]
        slower = [length for length, times in points if times <= 1]
        start = min((n for n in faster if n > max(slower, default=0)), default=None)
        lines.append(
            f"- {group}: faster than softmax over all keys "
            + (
                f"at none of these lengths up to {points[-1][0]}"
                if start is None
                else f"from L = {start} of {points[0][0]} to {points[-1][0]}"
            )
        )
    return lines
