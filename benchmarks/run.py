"""Measures the cases that the command line asks for.

A case is run by all of its contenders in turns, and between them a matrix product
and a copy of memory give the machine's own rates. A result is compared with the
definition in float64 first: of a wrong one no time is reported.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from datetime import datetime, timezone
from statistics import median
from typing import Any

import torch

from subquad.benchmarks import causality, crossover, machine, report, scaling_plot
from subquad.benchmarks.arguments import numbers, positive, words
from subquad.benchmarks.memory import MemoryServer, serve_memory
from subquad.benchmarks.output import check_outputs, write_json
from subquad.benchmarks.plot import check_plot
from subquad.benchmarks.registry import (
    Build,
    Case,
    Contender,
    Entry,
    Options,
    Results,
    Run,
    UnavailableError,
    all_kinds,
    entries,
)
from subquad.benchmarks.studies import STUDIES, listing
from subquad.benchmarks.timing import estimate, interleave, spread
from subquad.training.errors import CommandError
from subquad.training.options import Parser, nearest

# Share of the machine's rate that an operator is expected to reach.
EXPECTED_SHARE = 0.65
# A contender that shares its work with other cases is not run again if it takes longer.
_SHARED_SECONDS = 0.3
_LONG_SECONDS = 1.0
_EXTRAS = {"peers": "--peers", "compile": "--compile"}


def main(
    argv: Sequence[str],
    prog: str = "subquad bench",
    defaults: Mapping[str, Any] | None = None,
) -> int:
    """Measure what the command line asks for.

    Args:
        argv: Arguments after the command.
        prog: The command.
        defaults: Of options, by attribute, where they are not the usual ones.

    Returns:
        0; 1 if the library's result was wrong in a case.

    Raises:
        CommandError: Bad arguments, or a file that cannot be written.
    """
    arguments = _parser(prog, defaults or {}).parse_args(argv)
    known = entries()
    if arguments.list:
        print(report.listing(known.values()))
        return 0
    for name in arguments.names:
        if name in STUDIES:
            raise CommandError(f"{name} stands first: subquad bench {name}")
        if name not in known:
            raise CommandError(
                f"unknown benchmark {name!r}{nearest(name, [*known, *STUDIES])}"
            )
    chosen = [known[name] for name in arguments.names] or list(known.values())
    options = Options(
        lengths=arguments.lengths,
        windows=arguments.windows,
        kinds=arguments.kinds,
        passes=arguments.passes or Options.passes,
    )
    if arguments.against != (defaults or {}).get("against"):
        _check_contenders(arguments.against, chosen, options)
    check_outputs(arguments.json, arguments.plot)
    if arguments.plot:
        check_plot(arguments.plot)
    threads = torch.get_num_threads()
    torch.set_num_threads(arguments.threads or threads)
    try:
        records = _Bench(arguments, options).measure(chosen)
    finally:
        torch.set_num_threads(threads)
    if arguments.json:
        write_json(arguments.json, records)
    if arguments.plot:
        scaling_plot.write(arguments.plot, records)
    for path in filter(None, (arguments.json, arguments.plot)):
        print(f"written: {path}")
    wrong = [case for case in records["cases"] if case["error"]]
    return 1 if wrong else 0


def _check_contenders(
    wanted: Sequence[str], chosen: Iterable[Entry], options: Options
) -> None:
    cases = (case for entry in chosen for case in entry.cases(options))
    names = {contender.name for case in cases for contender in case.contenders}
    for name in wanted:
        if name not in names:
            raise CommandError(
                f"--against: unknown contender {name!r}{nearest(name, names)}"
            )


_DEFAULTS: Mapping[str, Any] = {
    "lengths": Options.lengths,
    "windows": Options.windows,
    "kinds": Options.kinds,
    "against": (),
    "memory": "library",
    "repeats": 7,
    "json": None,
    "plot": None,
}


def _parser(prog: str, defaults: Mapping[str, Any]) -> Parser:
    default = {**_DEFAULTS, **defaults}

    def told(name: str, otherwise: str) -> str:
        value = default[name]
        if isinstance(value, tuple):
            value = ",".join(map(str, value))
        return f"(default: {value or otherwise})"

    names = ", ".join(defaults.get("names", ())) or "all"
    parser = Parser(
        prog=prog,
        description=__doc__,
        epilog=f"commands of their own, each with --help:\n{listing()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "names",
        nargs="*",
        metavar="NAME",
        help=f"what to measure, see --list (default: {names})",
    )
    add("--list", action="store_true", help="tell what can be measured and stop")
    add(
        "--lengths",
        type=numbers,
        metavar="L,...",
        help=f"such as 512,1k,16k {told('lengths', '')}",
    )
    add(
        "--windows",
        type=numbers,
        metavar="W,...",
        help=f"window sizes {told('windows', '')}",
    )
    add(
        "--kinds",
        type=_kinds,
        metavar="KIND,...",
        help=f"of cases: {', '.join(all_kinds())} {told('kinds', 'all')}",
    )
    add(
        "--forward",
        dest="passes",
        action="append_const",
        const="forward",
        help="the forward pass alone",
    )
    add(
        "--backward",
        dest="passes",
        action="append_const",
        const="both",
        help="forward and backward pass together (default: both kinds)",
    )
    add("--peers", action="store_true", help="other packages too, where installed")
    add("--compile", action="store_true", help="the reference under torch.compile too")
    add(
        "--against",
        type=words,
        metavar="NAME,...",
        help=f"only these contenders and the library {told('against', 'all')}",
    )
    add(
        "--memory",
        choices=("none", "library", "all"),
        help="whose extra memory to measure (default: %(default)s)",
    )
    add("--repeats", type=positive, metavar="N", help="rounds (default: %(default)s)")
    add("--threads", type=positive, metavar="N", help="default: PyTorch's")
    add(
        "--json",
        metavar="FILE",
        help=f"write everything measured to a file {told('json', 'none')}",
    )
    add(
        "--plot",
        metavar="FILE",
        help="draw time and memory against length into a PNG, SVG or PDF file "
        + told("plot", "none"),
    )
    parser.set_defaults(**default)
    return parser


def _kinds(text: str) -> tuple[str, ...]:
    known = all_kinds()
    for word in words(text):
        if word not in known:
            raise argparse.ArgumentTypeError(
                f"expected one of {', '.join(known)}, got {word!r}"
                f"{nearest(word, known)}"
            )
    return words(text)


class _Bench:
    """One run of the command."""

    def __init__(self, arguments: argparse.Namespace, options: Options) -> None:
        self.arguments = arguments
        self.options = options
        self.rate_runs = machine.rate_runs()
        self.shared: dict[Any, list[float]] = {}
        self.changes: dict[Any, float] = {}
        self.memory: MemoryServer | None = None

    def measure(self, chosen: Iterable[Entry]) -> dict[str, Any]:
        """Measure all cases of some entries and print a table for each entry."""
        records: dict[str, Any] = {
            "schema": 1,
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "machine": machine.describe(),
            "threads": torch.get_num_threads(),
            "rounds": self.arguments.repeats,
            "expected_share": EXPECTED_SHARE,
            "cases": [],
        }
        print(report.heading(records))
        with ExitStack() as stack:
            if self.arguments.memory != "none":
                self.memory = stack.enter_context(serve_memory(torch.get_num_threads()))
            for entry in chosen:
                cases = []
                for case in entry.cases(self.options):
                    report.progress(case)
                    cases.append(self._case(case))
                report.progress(None)
                print(f"\n{report.table(entry, cases)}", flush=True)
                records["cases"] += cases
        records["rates"] = _overall_rates(records["cases"])
        records["crossovers"] = crossover.crossovers(records["cases"])
        print(f"\n{report.closing(records)}")
        return records

    def _case(self, case: Case) -> dict[str, Any]:
        # Else the shapes of earlier cases count towards the limit of recompilations.
        if "torch._dynamo" in sys.modules:
            torch._dynamo.reset()
        record: dict[str, Any] = {
            "entry": case.entry,
            "labels": dict(case.labels),
            "useful_flops": case.useful_flops,
            "computed_flops": case.computed_flops,
            "touched_bytes": case.touched_bytes,
            "tensor_bytes": case.tensor_bytes,
            "error": None,
            "contenders": {},
        }
        runs: dict[str, Run] = {}
        estimates: dict[str, float] = {}
        records: dict[str, dict[str, Any]] = record["contenders"]
        right = _Definitions(case)
        library = case.contenders[0]
        for contender in case.contenders:
            if contender is not library and library.name not in runs:
                records[contender.name] = _absent("not run: the library has no result")
                continue
            answer = self._prepare(case, contender, right)
            records[contender.name] = answer
            if "run" in answer:
                runs[contender.name] = answer.pop("run")
                estimates[contender.name] = answer.pop("estimate")
        if library.name not in runs:
            record["error"] = records[library.name]["reason"]
            return record
        for name, run in self.rate_runs.items():
            runs[_rate_name(name)] = run
            estimates[_rate_name(name)] = estimate(run)
        times = interleave(runs, estimates, self.arguments.repeats)
        rates = machine.rates(
            {name: median(times[_rate_name(name)]) for name in self.rate_runs}
        )
        record["rates"] = rates
        seconds = case.useful_flops / (EXPECTED_SHARE * rates["flops_per_second"])
        record["expected_seconds"] = (
            seconds + case.touched_bytes / rates["copy_bytes_per_second"]
        )
        for contender in case.contenders:
            answer = records[contender.name]
            if contender.name in runs:
                answer["seconds"] = times[contender.name]
                self._remember(contender, case, answer["seconds"])
            if "seconds" in answer:
                _derive(answer, case, record)
                self._measure_memory(case, contender, answer)
        return record

    def _prepare(
        self, case: Case, contender: Contender, right: _Definitions
    ) -> dict[str, Any]:
        """A record with a run, or with the reason why there is none."""
        wanted, extra = self.arguments.against, contender.extra
        if contender is not case.contenders[0]:
            if wanted and contender.name not in wanted:
                return _absent("not asked for: --against")
            if not wanted and extra and not getattr(self.arguments, extra):
                return _absent(f"not asked for: {_EXTRAS[extra]}")
        key = (contender.share, case.backward)
        if contender.share is not None and key in self.shared:
            return {"status": "shared", "seconds": self.shared[key]}
        try:
            run = contender.build(case.inputs(), case.backward)
            begin = time.perf_counter()
            results = run()
            seconds = time.perf_counter() - begin
        except UnavailableError as reason:
            return _absent(str(reason))
        except Exception as error:
            first = (str(error).splitlines() or [""])[0]
            return _absent(f"{type(error).__name__}: {first}")
        change = self._past_change(case, contender)
        if change > causality.TOLERANCE and contender is case.contenders[0]:
            return _wrong(
                change, f"reads the future: it changes the past by {change:.2g}"
            )
        found = right.error(contender, results)
        if found is not None and not found <= case.tolerance:
            return _wrong(
                found, f"wrong: off by {found:.2g}, allowed {case.tolerance:.2g}"
            )
        # The first call may load or compile; of a long one it is the smaller part.
        if seconds < _LONG_SECONDS or contender.compiled:
            seconds = estimate(run)
        return {
            "status": "measured",
            "error": found,
            "past_change": change,
            "leaks": change > causality.TOLERANCE,
            "run": run,
            "estimate": seconds,
        }

    def _past_change(self, case: Case, contender: Contender) -> float:
        """How much the future moves the past; once for all lengths."""
        # One that is compiled would be so for every cut; what agrees with a causal
        # definition cannot leak.
        if case.future is None or contender.compiled:
            return 0.0
        key = (case.entry, case.group, contender.name)
        if key not in self.changes:
            self.changes[key] = causality.past_change(case, contender)
        return self.changes[key]

    def _remember(self, contender: Contender, case: Case, seconds: list[float]) -> None:
        if contender.share is not None and median(seconds) > _SHARED_SECONDS:
            self.shared[(contender.share, case.backward)] = seconds

    def _measure_memory(
        self, case: Case, contender: Contender, answer: dict[str, Any]
    ) -> None:
        answer["extra_bytes"] = None
        extra: int | str
        if self.memory is None:
            extra = "not asked for: --memory"
        elif contender.compiled or answer["status"] != "measured":
            extra = "not measured: it would count the compiler, or take too long"
        elif contender is not case.contenders[0] and self.arguments.memory != "all":
            extra = "not asked for: --memory all"
        else:
            extra = self.memory.case_bytes(case, contender.name, self.options)
        if isinstance(extra, str):
            answer["memory_reason"] = extra
        else:
            answer["extra_bytes"] = extra
            answer["extra_memory"] = extra / case.tensor_bytes


class _Definitions:
    """The right results of a case, computed when they are first needed."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.results: dict[Build, Results] = {}

    def error(self, contender: Contender, results: Results) -> float | None:
        """Largest error of a number, relative to the largest of its tensor.

        A tensor counts as a hundredth of the largest at least: that of zeros (the
        gradient of a bias of keys) has no size of its own. None where nothing is
        known to compare with.
        """
        definition = contender.definition
        if definition is None:
            if contender.function:
                return None
            definition = self.case.definition
        if definition not in self.results:
            run = definition(self.case.inputs(), self.case.backward)
            self.results[definition] = run()
        right = self.results[definition]
        if [x.shape for x in results] != [x.shape for x in right]:
            return float("inf")
        sizes = [float(x.abs().max()) for x in right]
        errors = [
            float((x.double() - y).abs().max()) / max(size, max(sizes) / 100)
            for x, y, size in zip(results, right, sizes, strict=True)
        ]
        # NaN is not larger than anything: max() could lose it.
        return max(errors, key=lambda error: (error != error, error))


def _rate_name(name: str) -> str:
    """What a run of the machine's rate is called among those of contenders."""
    return f"machine: {name}"


def _wrong(error: float, reason: str) -> dict[str, Any]:
    return {"status": "wrong", "error": error, "reason": reason}


def _absent(reason: str) -> dict[str, Any]:
    return {"status": "absent", "reason": reason}


def _derive(answer: dict[str, Any], case: Case, record: dict[str, Any]) -> None:
    seconds = median(answer["seconds"])
    rate = record["rates"]["flops_per_second"]
    answer["median_seconds"] = seconds
    answer["spread"] = spread(answer["seconds"])
    library = record["contenders"][case.contenders[0].name]["median_seconds"]
    answer["times_library"] = seconds / library
    answer["useful_share"] = case.useful_flops / seconds / rate
    if case.computed_flops is not None:
        answer["computed_share"] = case.computed_flops / seconds / rate
    answer["times_expected"] = seconds / record["expected_seconds"]


def _overall_rates(cases: list[dict[str, Any]]) -> dict[str, float] | None:
    measured = [case["rates"] for case in cases if "rates" in case]
    if not measured:
        return None
    return {
        name: median(rates[name] for rates in measured)
        for name in ("flops_per_second", "copy_bytes_per_second")
    }
