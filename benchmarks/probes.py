"""Trials of a mechanism: is it what it says?

Each trial builds modules of a width of a few numbers and compares runs of them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from subquad.nn import get_mechanism

_WIDTH, _HEADS = 16, 2
_BATCH, _LENGTH, _KEYS = 2, 37, 23
_CUTS = (1, 9, 16, 30)
# What a mechanism needs to be told so that the future cannot matter.
_OPTIONS: Mapping[str, Mapping[str, Any]] = {"cosformer": {"max_length": 256}}
# Of runs that may add in another order; the largest results are near 1.
_TOLERANCE = 1e-5
_DTYPE_TOLERANCE = {"bfloat16": 0.1, "float16": 0.02}


@dataclass(frozen=True)
class Answer:
    """What came of a trial.

    Attributes:
        status: ``"yes"``, ``"no"`` (refused) or ``"wrong"``.
        detail: More about a yes.
        reason: Why not.
    """

    status: str
    detail: str = ""
    reason: str = ""


class WrongError(Exception):
    """Something ran and was not right."""


def probe(name: str) -> dict[str, Answer]:
    """All trials of a mechanism, by pattern, check and dtype.

    Args:
        name: In the registry.
    """
    probe = _Probe(name)
    with _quiet():
        answers = {
            pattern: _try(lambda p=pattern: probe.pattern(p))  # type: ignore[misc]
            for pattern in PATTERNS
        }
        # Further trials take the patterns that work, the first or all of them.
        works = [p for p in _PREFERRED if answers[p].status == "yes"]
        for check, trial in CHECKS.items():
            answers[check] = (
                _try(lambda t=trial: t(probe, works))  # type: ignore[misc]
                if works
                else Answer("no", reason="no pattern works")
            )
        for dtype in DTYPES:
            answers[dtype] = (
                _try(lambda d=dtype: probe.dtype(works[0], d))  # type: ignore[misc]
                if works
                else Answer("no", reason="no pattern works")
            )
    return answers


def _try(trial: Callable[[], str]) -> Answer:
    try:
        return Answer("yes", detail=trial())
    except WrongError as error:
        return Answer("wrong", reason=str(error))
    except Exception as error:  # whatever it is, the module does not do it
        line = " ".join(str(error).split())
        return Answer("no", reason=f"{type(error).__name__}: {line}"[:200])


@contextmanager
def _quiet() -> Iterator[None]:
    """The same random numbers in every trial, none of the caller's; no warnings."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class _Probe:
    """Builds and runs the module of a mechanism."""

    def __init__(self, name: str) -> None:
        self.cls: Any = get_mechanism(name)
        self.options = _OPTIONS.get(self.cls.names[0], {})

    def build(self, pattern: str) -> Any:
        """The same module every time."""
        torch.manual_seed(0)
        options = {**PATTERNS[pattern], **self.options}
        return self.cls(_WIDTH, _HEADS, **options).eval()

    def inputs(self, pattern: str) -> list[Tensor]:
        """Query, key and value, ``[L, B, C]``; of self-attention the query alone."""
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(_LENGTH, _BATCH, _WIDTH, generator=generator)
        if not PATTERNS[pattern]["cross"]:
            return [x]
        memory = torch.randn(_KEYS, _BATCH, _WIDTH, generator=generator)
        return [x, memory, memory]

    def pattern(self, pattern: str) -> str:
        """It runs, forward and backward, and a causal one hides the future."""
        module, (x, *memory) = self.build(pattern), self.inputs(pattern)
        output = module(x.requires_grad_(), *memory)[0]
        (gradient,) = torch.autograd.grad(output.square().sum(), x)
        _check(output.shape == x.shape, f"a result of shape {list(output.shape)}")
        _check(
            bool(output.isfinite().all() and gradient.isfinite().all()),
            "a result that is not finite",
        )
        x, output = x.detach(), output.detach()
        if PATTERNS[pattern]["causal"]:
            for cut in _CUTS:
                changed = torch.cat((x[:cut], -10 * x[cut:]))
                for other, what in ((changed, "changes"), (x[:cut], "is cut off")):
                    past = module(other, *memory)[0][:cut]
                    _close(past, output[:cut], f"the past moves when the future {what}")
        return ""

    def padding(self, patterns: Sequence[str]) -> str:
        """A padded row equals the row alone, whatever lies in the padding."""
        for pattern in patterns:
            for left, right in ((0, 5), (6, 0), (3, 4)):
                self._pad(pattern, left, right)
        return ""

    def _pad(self, pattern: str, left: int, right: int) -> None:
        module, (x, *memory) = self.build(pattern), self.inputs(pattern)
        tokens = (memory or [x])[0]
        valid = slice(left, tokens.shape[0] - right)
        padding = torch.ones(_BATCH, tokens.shape[0], dtype=torch.bool)
        padding[:, valid] = False
        padded = tokens.masked_fill(padding.t()[..., None], torch.nan)
        if memory:
            output = module(x, padded, padded, key_padding_mask=padding)[0]
            expected = module(x, tokens[valid], tokens[valid])[0]
        else:
            output = module(padded, key_padding_mask=padding)[0][valid]
            expected = module(tokens[valid])[0]
        _close(output, expected, f"{pattern}: a padded row differs from the row alone")

    def decoding(self, _: Sequence[str]) -> str:
        """Step by step as all at once, with a state whose size is told."""
        module, (x,) = self.build("causal self"), self.inputs("causal self")
        # Long enough for a state of a bounded size to stop growing.
        x = torch.cat((x, x.flip(0), x, x.flip(0)))
        expected = module(x)[0]
        state: dict[str, dict[str, Tensor | None]] = {}
        steps, sizes = [], []
        for token in x:
            steps.append(module(token[None], incremental_state=state)[0])
            sizes.append(
                sum(
                    tensor.numel()
                    for buffer in state.values()
                    for tensor in buffer.values()
                    if tensor is not None
                )
            )
        _close(torch.cat(steps), expected, "decoding differs from the parallel form")
        return "bounded" if sizes[-1] == sizes[len(sizes) // 2] else "growing"

    def script(self, patterns: Sequence[str]) -> str:
        """``torch.jit.script`` gives the same results."""
        module, inputs = self.build(patterns[0]), self.inputs(patterns[0])
        scripted = torch.jit.script(module)
        _close(scripted(*inputs)[0], module(*inputs)[0], "the scripted module differs")
        return ""

    def compile(self, patterns: Sequence[str]) -> str:
        """``torch.compile`` sees one graph and gives the same results."""
        module, inputs = self.build(patterns[0]), self.inputs(patterns[0])
        torch.compiler.reset()
        # Without code generation, which knows nothing of the operators.
        compiled: Any = torch.compile(module, fullgraph=True, backend="aot_eager")
        _close(compiled(*inputs)[0], module(*inputs)[0], "the compiled module differs")
        return ""

    def deterministic(self, patterns: Sequence[str]) -> str:
        """Two runs agree bit by bit, gradients too, in deterministic mode."""
        before = torch.are_deterministic_algorithms_enabled()
        torch.use_deterministic_algorithms(True)
        try:
            first, second = self._run(patterns[0]), self._run(patterns[0])
        finally:
            torch.use_deterministic_algorithms(before)
        for one, other in zip(first, second, strict=True):
            _check(torch.equal(one, other), "two runs differ")
        return ""

    def dtype(self, pattern: str, name: str) -> str:
        """It computes in a dtype what it computes in float64."""
        dtype, exact = getattr(torch, name), self._run(pattern, torch.float64)
        tolerance = _DTYPE_TOLERANCE.get(name, 1e-4)
        for result, right in zip(self._run(pattern, dtype), exact, strict=True):
            _check(result.dtype == dtype, f"a result of {result.dtype}")
            error = float((result.double() - right).abs().max())
            # NaN is not smaller than anything.
            _check(
                error <= tolerance * max(1.0, float(right.abs().max())),
                f"off by {error:.2g}",
            )
        return ""

    def _run(self, pattern: str, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        """Output and gradients."""
        module = self.build(pattern).to(dtype)
        inputs = [x.to(dtype).requires_grad_() for x in self.inputs(pattern)]
        output = module(*inputs)[0]
        leaves = [*inputs, *module.parameters()]
        return [output.detach(), *torch.autograd.grad(output.sum(), leaves)]


PATTERNS: Mapping[str, Mapping[str, bool]] = {
    "self": {"causal": False, "cross": False},
    "causal self": {"causal": True, "cross": False},
    "cross": {"causal": False, "cross": True},
    "causal cross": {"causal": True, "cross": True},
}
# Where there is a choice, self-attention that is causal is tried further.
_PREFERRED = ("causal self", "self", "cross", "causal cross")
CHECKS: Mapping[str, Callable[[_Probe, Sequence[str]], str]] = {
    "padding": _Probe.padding,
    "decoding": _Probe.decoding,
    "script": _Probe.script,
    "compile": _Probe.compile,
    "deterministic": _Probe.deterministic,
}
DTYPES = ("float64", "float32", "bfloat16", "float16")


def _check(right: bool, otherwise: str) -> None:
    if not right:
        raise WrongError(otherwise)


def _close(found: Tensor, expected: Tensor, otherwise: str) -> None:
    _check(found.shape == expected.shape, f"{otherwise}: another shape")
    if expected.numel():
        error = float((found - expected).abs().max())
        _check(error <= _TOLERANCE, f"{otherwise} by {error:.2g}")
