"""What each mechanism supports, found by trying it.

Every registered module is built in every pattern and run on small inputs on the CPU.
A causal one must not change its past when the future changes or is cut off; a padded
row must equal the row alone; decoding step by step must equal the parallel form. A
dash is what a module refuses, with its reason below; `wrong` is what it does, but not
right.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from subquad.benchmarks import machine, report
from subquad.benchmarks.output import check_outputs, write, write_json
from subquad.benchmarks.probes import CHECKS, DTYPES, PATTERNS, Answer, probe
from subquad.nn import mechanisms
from subquad.training.errors import CommandError
from subquad.training.options import Parser, nearest

_MARKS = {"yes": "✓", "no": "–", "wrong": "wrong"}


def main(argv: Sequence[str]) -> int:
    """Run ``subquad bench patterns``.

    Returns:
        0; 1 if something was wrong.

    Raises:
        CommandError: Bad arguments, or a file that cannot be written.
    """
    parser = Parser(
        prog="subquad bench patterns",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    known = mechanisms()
    add = parser.add_argument
    add(
        "names",
        nargs="*",
        metavar="NAME",
        help=f"of {', '.join(known)} (default: all)",
    )
    add("--json", metavar="FILE", help="write answers and reasons to a file")
    add("--markdown", metavar="FILE", help="write the table as Markdown")
    options = parser.parse_args(argv)
    for name in options.names:
        if name not in known:
            raise CommandError(f"unknown mechanism {name!r}{nearest(name, known)}")
    check_outputs(options.json, options.markdown)
    answers = {name: probe(name) for name in options.names or known}
    print("\n".join([*report.aligned(rows(answers)), *reasons(answers)]))
    if options.json:
        write_json(options.json, to_json(answers))
    if options.markdown:
        write(options.markdown, markdown(answers))
    for path in filter(None, (options.json, options.markdown)):
        print(f"written: {path}")
    wrong = any(a.status == "wrong" for of in answers.values() for a in of.values())
    return 1 if wrong else 0


def rows(answers: dict[str, dict[str, Answer]]) -> list[list[str]]:
    """The table: a line per mechanism, a column per check; dtypes in one column."""
    table = [["mechanism", *PATTERNS, *CHECKS, "dtypes"]]
    for name, of in answers.items():
        cells = [_cell(of[check]) for check in (*PATTERNS, *CHECKS)]
        dtypes = [dtype for dtype in DTYPES if of[dtype].status == "yes"]
        table.append([name, *cells, ", ".join(dtypes) or "–"])
    return table


def _cell(answer: Answer) -> str:
    mark = _MARKS[answer.status]
    return f"{mark} {answer.detail}" if answer.detail else mark


def reasons(answers: dict[str, dict[str, Answer]]) -> list[str]:
    """A line for everything that is not supported."""
    return [
        f"- {name}, {check}: {answer.reason}"
        for name, of in answers.items()
        for check, answer in of.items()
        if answer.reason
    ]


def markdown(answers: dict[str, dict[str, Answer]]) -> str:
    """The table and the reasons as Markdown."""
    head, *body = rows(answers)
    lines = [head, ["---"] * len(head), *body]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    return "\n".join([table, "", *reasons(answers)]).rstrip() + "\n"


def to_json(answers: dict[str, dict[str, Answer]]) -> dict[str, Any]:
    """All answers with machine and versions."""
    return {
        "schema": 1,
        "machine": machine.describe(),
        "mechanisms": {
            name: {check: vars(answer) for check, answer in of.items()}
            for name, of in answers.items()
        },
    }
