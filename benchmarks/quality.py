"""How well each causal mechanism models text under one budget.

The small language model of `subquad train lm` is trained with every mechanism that
can be causal, on the same tokens in the same order, once per seed. Bits per
character are those of validation text after the last step. Ctrl-C prints what has
finished.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch

from subquad.benchmarks import machine, report
from subquad.benchmarks.arguments import positive
from subquad.benchmarks.output import check_outputs, write_json
from subquad.nn import mechanisms
from subquad.training.config import ModelConfig, RunConfig
from subquad.training.errors import CommandError
from subquad.training.lm import build_model, train
from subquad.training.mechanism import Mechanism, mechanism_arguments
from subquad.training.options import Parser, add_settings

_BASELINE = "softmax"
_INTERRUPTED = 130
# Where they differ from those of `subquad train lm`.
_BUDGET = {"steps": 150, "context": 1024, "batch": 2}


def main(argv: Sequence[str]) -> int:
    """Run ``subquad bench quality``.

    Returns:
        0, or 130 if it was interrupted.

    Raises:
        CommandError: Bad arguments, text or settings, or a file that cannot be
            written.
    """
    first = Parser(add_help=False)
    first.add_argument("--attention")
    names = first.parse_known_args(argv)[0].attention
    found = [
        Mechanism.find(name) for name in (names or ",".join(mechanisms())).split(",")
    ]
    parser = _parser(found)
    options = vars(parser.parse_args(argv))
    check_outputs(options["json"])
    configs, left_out = _configs(found, options, strict=bool(names))
    with _threads(options["threads"]):
        records = measure(configs, options["seeds"], options["device"])
    records["left_out"] |= left_out
    if records["runs"]:
        print(table(records))
    if options["json"]:
        write_json(options["json"], records)
        print(f"written: {options['json']}")
    return _INTERRUPTED if records["interrupted"] else 0


def _configs(
    found: Sequence[Mechanism], options: Mapping[str, Any], strict: bool
) -> tuple[list[ModelConfig], dict[str, str]]:
    """Settings of every mechanism, and why one is left out, unless ``strict``."""
    settings = {
        f.name: options[f.name] for f in fields(ModelConfig) if f.name in options
    }
    arguments = mechanism_arguments(options)
    configs, left_out = [], {}
    for each in found:
        own = {"attention": each.name, "attention_args": each.own(arguments)}
        try:
            config = ModelConfig(**{**_BUDGET, **settings, **own})
        except ValueError as error:
            raise CommandError(str(error)) from None
        try:
            build_model(config, 256)
        except CommandError as error:
            if strict:
                raise
            left_out[each.name] = str(error)
        else:
            configs.append(config)
    return configs, left_out


def _parser(found: Sequence[Mechanism]) -> Parser:
    parser = Parser(
        prog="subquad bench quality",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[mechanism.parser for mechanism in found],
        conflict_handler="resolve",  # several mechanisms may share an option
        argument_default=argparse.SUPPRESS,
    )
    add = parser.add_argument
    add(
        "--text",
        metavar="FILE",
        help="text (default: the help topics that every Python carries)",
    )
    add(
        "--attention",
        metavar="NAME,...",
        help=f"of {', '.join(mechanisms())} (default: all that can be causal)",
    )
    add(
        "--seeds",
        type=_seeds,
        default=(0, 1, 2),
        metavar="N,...",
        help="of weights and data order (default: 0,1,2)",
    )
    add(
        "--threads", type=positive, default=None, metavar="N", help="default: PyTorch's"
    )
    add("--json", default=None, metavar="FILE", help="write the results to a file")
    budget = parser.add_argument_group("budget and model")
    add_settings(
        budget, ModelConfig, defaults=_BUDGET, leave_out=("seed", "eval_interval")
    )
    add("--device", default="auto", help="cpu, cuda, cuda:1, ... (default: auto)")
    return parser


def _seeds(text: str) -> tuple[int, ...]:
    try:
        seeds = tuple(int(word) for word in text.split(","))
    except ValueError:
        seeds = ()
    if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise argparse.ArgumentTypeError(
            f"expected different numbers of at least 0, got {text!r}"
        )
    return seeds


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def measure(
    configs: Sequence[ModelConfig], seeds: Sequence[int], device: str
) -> dict[str, Any]:
    """Train every mechanism with every seed, a seed at a time.

    So an interruption leaves mechanisms that had the same seeds.

    Returns:
        Records of the finished runs and of all that they have in common.

    Raises:
        CommandError: Bad text or settings.
    """
    records: dict[str, Any] = {
        "schema": 1,
        "machine": machine.describe(),
        "threads": torch.get_num_threads(),
        "configs": [config.to_json() for config in configs],
        "seeds": list(seeds),
        "left_out": {},
        "interrupted": False,
        "runs": [],
    }
    try:
        for seed in seeds:
            for config in configs:
                if config.attention in records["left_out"]:
                    continue
                try:
                    end = _train(replace(config, seed=seed), device)
                except CommandError as error:
                    if not records["runs"]:  # as bad for all of them
                        raise
                    records["left_out"][config.attention] = str(error)
                    continue
                if end["signal"]:
                    records["interrupted"] = True
                    return records
                names = ("attention", "bits_per_character", "tokens_per_second")
                run = {name: end[name] for name in (*names, "seconds", "parameters")}
                records["runs"].append({"seed": seed, **run})
    except KeyboardInterrupt:
        records["interrupted"] = True
    return records


def _train(config: ModelConfig, device: str) -> dict[str, Any]:
    # One validation, at the end; the checkpoint is not kept.
    config = replace(config, eval_interval=config.steps)
    with tempfile.TemporaryDirectory() as folder:
        run = RunConfig(out=str(Path(folder) / "run"), tensorboard=False, device=device)
        return train(config, run)


def table(records: Mapping[str, Any]) -> str:
    """A line per mechanism, the best first, with the spread over seeds."""
    bits: dict[str, dict[int, float]] = {}
    speeds: dict[str, list[float]] = {}
    for run in records["runs"]:
        name = run["attention"]
        bits.setdefault(name, {})[run["seed"]] = run["bits_per_character"]
        speeds.setdefault(name, []).append(run["tokens_per_second"])
    rows = [
        [
            "attention",
            "bits/char",
            "min",
            "max",
            f"minus {_BASELINE}",
            "tokens/s",
            "runs",
        ]
    ]
    for name in sorted(bits, key=lambda name: fmean(bits[name].values())):
        values = list(bits[name].values())
        softmax = bits.get(_BASELINE, {})
        # Of runs with the same seed, so with the same data.
        pairs = [value - softmax[s] for s, value in bits[name].items() if s in softmax]
        rows.append(
            [
                name,
                _mean(values),
                f"{min(values):.4f}",
                f"{max(values):.4f}",
                _mean(pairs, "+") if pairs and name != _BASELINE else "-",
                f"{fmean(speeds[name]):,.0f}",
                str(len(values)),
            ]
        )
    config = records["configs"][0]
    tokens = config["steps"] * config["batch"] * config["context"]
    lines = [
        f"{config['text']}: {tokens:,} tokens in {config['steps']} steps each; "
        f"{config['layers']} layers of width {config['width']}, context "
        f"{config['context']}",
        *report.aligned(rows),
        "mean and standard deviation over seeds; lower is better",
    ]
    if records["interrupted"]:
        lines.append("interrupted: only what finished is counted")
    lines += [f"- {k}: left out: {why}" for k, why in records["left_out"].items()]
    return "\n".join(lines)


def _mean(values: Sequence[float], sign: str = "") -> str:
    spread = stdev(values) if len(values) > 1 else 0.0
    return f"{fmean(values):{sign}.4f} ± {spread:.4f}"
