"""The commands ``subquad train lm`` and ``subquad generate``."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from subquad.nn import mechanisms
from subquad.training.checkpoint import Checkpoint, load
from subquad.training.compare import compare, stopped, table
from subquad.training.config import ModelConfig, RunConfig
from subquad.training.errors import CommandError
from subquad.training.generate import continue_text
from subquad.training.lm import saved_config, train
from subquad.training.mechanism import Mechanism, mechanism_arguments
from subquad.training.options import Parser, add_settings
from subquad.training.processes import first, launched, processes

# What the command compares when it is told neither a text nor a mechanism.
_COMPARED = "local,softmax"
# Settings that a resumed run may change.
_CHANGEABLE = ("steps", "eval_interval", "log_interval")


def train_lm(argv: Sequence[str]) -> int:
    """Run ``subquad train lm``.

    Returns:
        The exit code: 0, or 128 and the number of the signal that ended the run.

    Raises:
        CommandError: bad input.
    """
    names, folder = _first_look(argv)
    checkpoint = load(Path(folder)) if folder is not None else None
    saved = saved_config(checkpoint) if checkpoint else None
    if saved:
        names = names or saved.attention
    found = [Mechanism.find(name) for name in (names or _COMPARED).split(",")]
    given = vars(_train_parser(found).parse_args(argv))
    if not names and "text" in given:
        found = found[:1]
    settings, running = (
        {f.name: given[f.name] for f in fields(kind) if f.name in given}
        for kind in (ModelConfig, RunConfig)
    )
    if "text" in settings:
        settings["text"] = str(Path(settings["text"]).resolve())
    arguments = mechanism_arguments(given)
    if checkpoint and saved:
        return _resume(checkpoint, saved, settings, arguments, running)
    running.setdefault("out", time.strftime("runs/lm-%Y%m%d-%H%M%S"))
    try:
        run = RunConfig(**running)
        configs = [
            ModelConfig(
                **settings
                | {"attention": each.name, "attention_args": each.own(arguments)}
            )
            for each in found
        ]
    except ValueError as error:
        raise CommandError(str(error)) from None
    if len(configs) == 1:
        return _finish(train(configs[0], run), run)
    if launched():
        raise CommandError(
            f"--attention: several processes train one mechanism, got {names}"
        )
    return compare(configs, run)


def _resume(
    checkpoint: Checkpoint,
    saved: ModelConfig,
    settings: Mapping[str, Any],
    arguments: Mapping[str, Any],
    running: Mapping[str, Any],
) -> int:
    asked = {**settings, "attention_args": {**saved.attention_args, **arguments}}
    for name, value in asked.items():
        fixed = getattr(saved, name)
        if name not in _CHANGEABLE and value != fixed:
            raise CommandError(
                f"{name.replace('_', '-')}: fixed by the checkpoint at {fixed!r}, "
                f"got {value!r}"
            )
    out = str(checkpoint.path.parent)
    if running.get("out", out) != out:
        raise CommandError(f"--out: a resumed run stays in {out}")
    try:
        config = replace(saved, **{n: asked[n] for n in _CHANGEABLE if n in asked})
        run = RunConfig(**{**running, "out": out})
    except ValueError as error:
        raise CommandError(str(error)) from None
    return _finish(train(config, run, checkpoint), run)


def _finish(end: Mapping[str, Any], run: RunConfig) -> int:
    """Print the result of one run and return the exit code."""
    if end["signal"]:
        return stopped(end, run.out)
    if first():
        print(f"{table([end])}\n\nsubquad generate {run.out}")
    return 0


def _first_look(argv: Sequence[str]) -> tuple[str | None, str | None]:
    """Return the options that decide which other options there are."""
    parser = Parser(add_help=False)
    parser.add_argument("--attention")
    parser.add_argument("--resume")
    found, _ = parser.parse_known_args(argv)
    return found.attention, found.resume


def _train_parser(found: Sequence[Mechanism]) -> Parser:
    parser = Parser(
        prog="subquad train lm",
        description="Train a causal language model on a text file. Without TEXT and "
        "--attention, train the same small model with local and with softmax "
        "attention on the help topics that every Python carries, and compare them.",
        parents=[mechanism.parser for mechanism in found],
        conflict_handler="resolve",  # several mechanisms may share an option
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("text", metavar="TEXT", nargs="?", help="text file")
    parser.add_argument(
        "--attention",
        metavar="NAME",
        help=f"one of {', '.join(mechanisms())}; several, separated by commas, "
        "are compared, each in a process of its own (default: local)",
    )
    add_settings(parser, ModelConfig)
    add_settings(parser, RunConfig)
    parser.add_argument(
        "--out", help="folder of checkpoints and logs (default: runs/lm-DATE-TIME)"
    )
    parser.add_argument(
        "--resume",
        metavar="RUN",
        help="folder or checkpoint of a run to continue, with its settings",
    )
    parser.add_argument(
        "--tensorboard",
        action=argparse.BooleanOptionalAction,
        help="write TensorBoard files (default: where it is installed)",
    )
    return parser


def generate(argv: Sequence[str]) -> int:
    """Run ``subquad generate``.

    Returns:
        The exit code, 0.

    Raises:
        CommandError: bad input.
    """
    parser = Parser(
        prog="subquad generate",
        description="Continue a prompt with a trained language model.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "checkpoint", metavar="CHECKPOINT", type=Path, help="file or folder of a run"
    )
    parser.add_argument("--prompt", default="\n", help="text to continue")
    parser.add_argument("--length", type=int, default=500, help="number of new tokens")
    parser.add_argument(
        "--temperature", type=float, default=0.8, help="0: the likeliest token"
    )
    parser.add_argument(
        "--top-k", type=int, default=0, help="draw among so many tokens; 0: all"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the draws")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ...")
    options = parser.parse_args(argv)
    for name in ("length", "temperature", "top_k", "seed"):
        if not getattr(options, name) >= 0:
            raise CommandError(
                f"--{name.replace('_', '-')}: must be at least 0, "
                f"got {getattr(options, name)}"
            )
    with processes(options.device) as ranks:
        for piece in continue_text(
            options.checkpoint,
            options.prompt,
            options.length,
            temperature=options.temperature,
            top_k=options.top_k,
            seed=options.seed,
            device=ranks.device,
        ):
            print(piece, end="", flush=True)
    print()
    return 0
