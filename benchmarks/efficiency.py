r"""CAB's efficiency length: the length from which softmax attention costs more.

The cost of softmax attention is fitted by a x^2 + b x + c over the lengths x, that of
an efficient mechanism by d x + e; the efficiency length is where they meet, the
larger root of a x^2 + (b - d) x + (c - e) = 0 (Zhang et al. 2022, arXiv 2210.07661).
The line through the times leaves out the shortest length, as CAB does.

Measured is the forward pass of a module in training mode, noncausal: time in turns,
mean of the middle half; memory at its peak, with the module and all that backward
will need. Or the measurements are read from a file: JSON as this command writes it,
or CAB's cost.xlsx.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from subquad.benchmarks import efficiency_plot, machine, report
from subquad.benchmarks.arguments import numbers, positive
from subquad.benchmarks.costs import Costs, read_costs
from subquad.benchmarks.crossover import crossing
from subquad.benchmarks.efficiency_length import Fit, efficiency_length
from subquad.benchmarks.memory import ENDED, MemoryServer, serve_memory
from subquad.benchmarks.output import check_outputs, write_json
from subquad.benchmarks.plot import check_plot
from subquad.benchmarks.registry import Results, Run, random
from subquad.benchmarks.timing import estimate, interleave
from subquad.errors import UnsupportedPattern
from subquad.nn import get_mechanism, mechanisms
from subquad.training.errors import CommandError
from subquad.training.mechanism import Mechanism, mechanism_arguments
from subquad.training.memory import available_memory
from subquad.training.options import Parser

SOFTMAX = "softmax"
# CAB's own options of the mechanisms.
_DEFAULTS = {"local": {"window_size": 16}}
_WIDTH, _HEADS = 512, 8
# Softmax attention is not run where it might take more of the free memory than this.
_MEMORY_SHARE = 0.7
_MIB = 2**20


def main(argv: Sequence[str]) -> int:
    """Run ``subquad bench efficiency``.

    Returns:
        0.

    Raises:
        CommandError: Bad arguments or measurements, or a file that cannot be written.
    """
    first = Parser(add_help=False)
    first.add_argument("--attention")
    names = first.parse_known_args(argv)[0].attention
    chosen = (names or ",".join(mechanisms())).split(",")
    found = [Mechanism.find(name, _DEFAULTS) for name in chosen]
    parser = _parser(found)
    options = parser.parse_args(argv)
    check_outputs(options.json, options.plot)
    if options.plot:
        check_plot(options.plot)
    records: dict[str, Any] = {"schema": 1}
    if options.measurements:
        costs = read_costs(options.measurements)
    else:
        arguments = mechanism_arguments(vars(options))
        own = {each.name: each.own(arguments) for each in found}
        records["machine"] = machine.describe()
        records["options"] = own
        costs = _Measurement(options, own, strict=bool(names)).costs()
    fits = efficiency_lengths(costs)
    print(table(costs, fits))
    for reason in costs.reasons:
        print(f"- {reason}")
    records |= costs.to_json()
    records["efficiency_lengths"] = {
        quantity: {name: asdict(fit) for name, fit in of.items()}
        for quantity, of in fits.items()
    }
    if options.json:
        write_json(options.json, records)
        print(f"written: {options.json}")
    if options.plot:
        efficiency_plot.write(options.plot, costs, fits)
        print(f"written: {options.plot}")
    return 0


def efficiency_lengths(costs: Costs) -> dict[str, dict[str, Fit]]:
    """The fits by quantity and mechanism.

    Raises:
        CommandError: Too few lengths.
    """
    fits: dict[str, dict[str, Fit]] = {}
    for quantity, (of, factor) in costs.quantities().items():
        baseline, *others = of
        fits[quantity] = {
            name: efficiency_length(
                costs.lengths,
                of[baseline],
                of[name],
                skip=1 if quantity == "time" else 0,
                factor=factor,
            )
            for name in others
        }
    return fits


def table(costs: Costs, fits: Mapping[str, Mapping[str, Fit]]) -> str:
    """A line per quantity and mechanism.

    Least squares follow the largest costs and may miss the small ones that decide,
    so the measured crossing stands beside the fitted one.
    """
    rows = [
        [
            "cost",
            "mechanism",
            "efficiency length",
            "R^2 of line",
            "R^2 of parabola",
            "measured",
        ]
    ]
    for quantity, of in fits.items():
        for name, fit in of.items():
            rows.append(
                [
                    quantity,
                    name,
                    fit.words(),
                    f"{fit.line_r2:.4f}",
                    f"{fit.parabola_r2:.4f}",
                    _measured(costs, quantity, name),
                ]
            )
    return "\n".join(report.aligned(rows))


def _measured(costs: Costs, quantity: str, name: str) -> str:
    """From which length on the measured cost is lower than that of softmax."""
    of, _ = costs.quantities()[quantity]
    points = [
        (length, cost, softmax)
        for length, cost, softmax in zip(
            costs.lengths, of[name], next(iter(of.values())), strict=True
        )
        if cost and softmax
    ]
    length = crossing(points)
    if length is None:
        return "never cheaper"
    return f"cheaper from {'at most ' if length == points[0][0] else ''}{length:.0f}"


def _parser(found: Sequence[Mechanism]) -> Parser:
    parser = Parser(
        prog="subquad bench efficiency",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[mechanism.parser for mechanism in found],
        conflict_handler="resolve",  # several mechanisms may share an option
    )
    add = parser.add_argument
    add(
        "--attention",
        metavar="NAME,...",
        help=f"of {', '.join(mechanisms())} (default: all for noncausal "
        "self-attention); compared with softmax",
    )
    add(
        "--measurements",
        metavar="FILE",
        help="measure nothing, take them from a .json or .xlsx file; the first "
        "mechanism in it is softmax",
    )
    lengths = tuple(256 << i for i in range(6))
    add(
        "--lengths",
        type=_lengths,
        default=lengths,
        metavar="L,...",
        help=f"(default: {','.join(map(str, lengths))})",
    )
    add(
        "--batch",
        type=positive,
        default=1,
        metavar="B",
        help="rows (default: 1; CAB: 4)",
    )
    add(
        "--dropout", type=float, default=0.3, metavar="P", help="(default: %(default)s)"
    )
    add(
        "--repeats",
        type=positive,
        default=100,
        metavar="N",
        help="turns of each mechanism at each length, fewer where they take seconds "
        "(default: %(default)s)",
    )
    add("--threads", type=positive, metavar="N", help="default: PyTorch's")
    add("--json", metavar="FILE", help="write measurements and fits to a file")
    add("--plot", metavar="FILE", help="draw both into a PNG, SVG or PDF file")
    return parser


def _lengths(text: str) -> tuple[int, ...]:
    lengths = tuple(sorted(set(numbers(text))))
    if len(lengths) < 4:
        raise argparse.ArgumentTypeError(
            f"expected at least four different lengths, got {text!r}"
        )
    return lengths


def prepare(
    length: int, name: str, options: Mapping[str, Any], batch: int, dropout: float
) -> Run:
    """A run that makes the module of a mechanism and calls it once.

    Its memory is counted with the module and what autograd keeps: none is a result.
    """
    x = random((length, batch, _WIDTH), 0)

    def run() -> Results:
        output = _build(name, options, dropout)(x)[0]
        return () if output.requires_grad else (output,)

    return run


def _build(name: str, options: Mapping[str, Any], dropout: float) -> torch.nn.Module:
    cls: Any = get_mechanism(name)
    module: torch.nn.Module = cls(_WIDTH, _HEADS, dropout=dropout, **options)
    return module


class _Measurement:
    """One measurement of all mechanisms."""

    def __init__(
        self,
        options: argparse.Namespace,
        mechanisms: Mapping[str, Mapping[str, Any]],
        strict: bool,
    ) -> None:
        self.options = options
        self.reasons: list[str] = []
        self.mechanisms: dict[str, Mapping[str, Any]] = {SOFTMAX: {}}
        for name, own in mechanisms.items():
            if get_mechanism(name) is get_mechanism(SOFTMAX):
                continue
            try:
                _build(name, own, options.dropout)
            except UnsupportedPattern as error:
                if strict:
                    raise CommandError(str(error)) from None
                self.reasons.append(f"{name}: left out: {error}")
                continue
            except (ValueError, TypeError) as error:
                raise CommandError(str(error)) from None
            self.mechanisms[name] = own
        if len(self.mechanisms) < 2:
            raise CommandError("--attention: nothing to compare with softmax")

    def costs(self) -> Costs:
        """Measure all lengths, the shortest first."""
        threads = torch.get_num_threads()
        torch.set_num_threads(self.options.threads or threads)
        times: dict[str, list[float | None]] = {name: [] for name in self.mechanisms}
        memory: dict[str, list[float | None]] = {name: [] for name in self.mechanisms}
        try:
            with serve_memory(torch.get_num_threads()) as server:
                for length in self.options.lengths:
                    fitting = self._memory(server, length, memory)
                    self._times(length, times, fitting)
        finally:
            torch.set_num_threads(threads)
        if all(cost is None for row in memory.values() for cost in row):
            memory = {}  # the system does not tell
        return Costs(self.options.lengths, times, memory, tuple(self.reasons))

    def _memory(
        self, server: MemoryServer, length: int, memory: dict[str, list[float | None]]
    ) -> list[str]:
        """Measure memory at a length and return who has room to run."""
        fitting = []
        for name, own in self.mechanisms.items():
            if self._too_large(name, length, memory[name]):
                memory[name].append(None)
                continue
            answer = server.extra_bytes(
                f"{__package__}.efficiency:prepare",
                length,
                {
                    "name": name,
                    "options": dict(own),
                    "batch": self.options.batch,
                    "dropout": self.options.dropout,
                },
            )
            if isinstance(answer, str):
                self.reasons.append(f"{name}: no memory at L = {length}: {answer}")
                memory[name].append(None)
                if answer.startswith(ENDED):
                    continue
            else:
                memory[name].append(answer / _MIB)
            fitting.append(name)
        return fitting

    def _too_large(
        self, name: str, length: int, before: Sequence[float | None]
    ) -> bool:
        """Whether a cost that grows with the square would not leave room."""
        free = available_memory()
        known = [
            (length / shorter) ** 2 * mib * _MIB
            for shorter, mib in zip(self.options.lengths, before, strict=False)
            if mib is not None
        ]
        if free is None or not known or known[-1] < _MEMORY_SHARE * free:
            return False
        self.reasons.append(
            f"{name}: not run at L = {length}, where it may take "
            f"{known[-1] / 2**30:.1f} of {free / 2**30:.1f} GiB of free memory"
        )
        return True

    def _times(
        self, length: int, times: dict[str, list[float | None]], names: Sequence[str]
    ) -> None:
        x = random((length, self.options.batch, _WIDTH), 0)
        runs = {
            name: _call(_build(name, self.mechanisms[name], self.options.dropout), x)
            for name in names
        }
        estimates = {
            name: min(estimate(run), estimate(run)) for name, run in runs.items()
        }
        seconds = interleave(runs, estimates, self.options.repeats) if runs else {}
        for name in self.mechanisms:
            turns = seconds.get(name)
            times[name].append(1e3 * _middle_mean(turns) if turns else None)


def _call(module: torch.nn.Module, x: Tensor) -> Run:
    return lambda: (module(x)[0],)


def _middle_mean(seconds: Sequence[float]) -> float:
    """Mean of those between the quartiles, which are taken at midpoints."""
    times = torch.tensor(seconds, dtype=torch.float64)
    bounds = torch.tensor([0.25, 0.75], dtype=torch.float64)
    low, high = times.quantile(bounds, interpolation="midpoint")
    middle = times[(times >= low) & (times <= high)]
    # Of two times none lies between the quartiles, which are the same.
    return float(middle.mean() if len(middle) else times.mean())
