r"""CAB's compositional index of the results in a file.

The file has four lines of numbers, one per pattern: ten of noncausal
self-attention, six of causal self, nine of noncausal cross, five of causal cross,
in the order of CAB's tasks (Zhang et al. 2022, arXiv 2210.07661). Each becomes a
z-score over CAB's mechanisms, with its sign turned where lower is better; a task
has their mean, a pattern the mean of its tasks. `nan` stands for a result that is
not there: its task is left out.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from subquad.benchmarks.output import check_outputs, write_json
from subquad.training.errors import CommandError
from subquad.training.options import Parser


@dataclass(frozen=True)
class Metric:
    """Its sign (-1: lower is better), and mean and deviation over mechanisms."""

    sign: int
    mean: float
    deviation: float

    def score(self, value: float) -> float:
        """Deviations from the mean, positive where better."""
        return self.sign * (value - self.mean) / self.deviation


LOWER, HIGHER = -1, 1
# Pattern, task, metrics in the order of the file: MCD and MSD of FastSpeech 2 and
# of Transformer-TTS; ROUGE 1, 2 and L; PSNR, SSIM; perplexity; two Chamfer
# distances and F1; MSE and MAE of ETT, ECL and Weather.
PATTERNS: Mapping[str, Mapping[str, Sequence[Metric]]] = {
    "Noncausal Self": {
        "TTS": (
            Metric(LOWER, 3.4245, 0.06832),
            Metric(LOWER, 1.97429, 0.0361768),
            Metric(LOWER, 4.06947, 0.09422),
            Metric(LOWER, 2.19021, 0.03866),
        ),
        "Sum": (
            Metric(HIGHER, 34.88667, 1.39697),
            Metric(HIGHER, 6.79333, 1.41078),
            Metric(HIGHER, 31.96889, 1.31499),
        ),
        "SR": (Metric(HIGHER, 23.208, 0.27499), Metric(HIGHER, 0.6758, 0.01557)),
        "MLM": (Metric(LOWER, 36.292, 62.30827),),
    },
    "Causal Self": {
        "TTS": (Metric(LOWER, 4.08325, 0.04529), Metric(LOWER, 2.20085, 0.01372)),
        "Sum": (
            Metric(HIGHER, 32.9575, 1.92754),
            Metric(HIGHER, 6.0925, 0.41007),
            Metric(HIGHER, 30.2575, 1.61951),
        ),
        "LM": (Metric(LOWER, 22.26, 8.29944),),
    },
    "Noncausal Cross": {
        "PCC": (
            Metric(LOWER, 7.7025, 0.64789),
            Metric(LOWER, 0.24775, 0.03366),
            Metric(HIGHER, 0.7625, 0.03906),
        ),
        "LSTF": (
            Metric(LOWER, 1.18933, 0.05615),
            Metric(LOWER, 0.80625, 0.02193),
            Metric(LOWER, 0.47575, 0.01057),
            Metric(LOWER, 0.511, 0.00601),
            Metric(LOWER, 0.62025, 0.18948),
            Metric(LOWER, 0.58075, 0.10312),
        ),
    },
    "Causal Cross": {
        "TTS": (Metric(LOWER, 5.5037, 1.29239), Metric(LOWER, 2.6278, 0.42726)),
        "Sum": (
            Metric(HIGHER, 31.35, 3.77103),
            Metric(HIGHER, 5.26, 1.26028),
            Metric(HIGHER, 28.8, 3.28638),
        ),
    },
}
Scores = dict[str, dict[str, float]]


def main(argv: Sequence[str]) -> int:
    """Run ``subquad bench compositional-index``.

    Returns:
        0.

    Raises:
        CommandError: A file that is not as described, or cannot be written.
    """
    parser = Parser(
        prog="subquad bench compositional-index",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", metavar="FILE", help="four lines of numbers")
    parser.add_argument("--json", metavar="FILE", help="write the scores to a file")
    options = parser.parse_args(argv)
    check_outputs(options.json)
    scores = compositional_index(read(options.file))
    print(report(scores))
    if options.json:
        write_json(options.json, _without_nan(scores))
    return 0


def read(path: str) -> list[list[float]]:
    """The numbers of a file, a list per pattern.

    Raises:
        CommandError: It cannot be read or is not as described.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise CommandError(f"{path}: cannot read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise CommandError(f"{path}: not a text of numbers") from None
    while lines and not lines[-1].strip():
        lines.pop()
    if len(lines) != len(PATTERNS):
        raise CommandError(
            f"{path}: expected {len(PATTERNS)} lines, one per pattern, got {len(lines)}"
        )
    rows = []
    for i, (line, (pattern, tasks)) in enumerate(
        zip(lines, PATTERNS.items(), strict=True), 1
    ):
        row = [_number(path, i, word) for word in line.split()]
        count = sum(map(len, tasks.values()))
        if len(row) != count:
            raise CommandError(
                f"{path}: line {i}, {pattern}, must have {count} numbers, "
                f"got {len(row)}"
            )
        rows.append(row)
    return rows


def _number(path: str, line: int, word: str) -> float:
    try:
        number = float(word)
    except ValueError:
        number = math.inf
    if math.isinf(number):
        raise CommandError(f"{path}: line {line}: expected a number, got {word!r}")
    return number


def compositional_index(rows: Sequence[Sequence[float]]) -> Scores:
    """Scores of the tasks of every pattern and, as ``"total"``, their mean.

    Args:
        rows: Results per pattern, NaN where one is missing.
    """
    scores: Scores = {}
    for (pattern, tasks), row in zip(PATTERNS.items(), rows, strict=True):
        values = iter(row)
        found = {
            task: fmean(metric.score(next(values)) for metric in metrics)
            for task, metrics in tasks.items()
        }
        known = [score for score in found.values() if not math.isnan(score)]
        scores[pattern] = {**found, "total": fmean(known) if known else math.nan}
    return scores


def report(scores: Scores) -> str:
    """The scores in CAB's own layout."""
    lines = []
    for pattern, found in scores.items():
        tasks = [f"{k}: {v:.4f}" for k, v in found.items() if k != "total"]
        lines += [f"========{pattern}========", "  ".join(tasks), ""]
        lines.append(f"total: {found['total']:.4f}")
    return "\n".join(lines)


def _without_nan(scores: Scores) -> dict[str, dict[str, float | None]]:
    return {
        pattern: {k: None if math.isnan(v) else v for k, v in found.items()}
        for pattern, found in scores.items()
    }
