"""What is measured: entries, their cases and the contenders of a case."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

import subquad.benchmarks

Results: TypeAlias = tuple[Tensor, ...]
# Runs once, the same way every time.
Run: TypeAlias = Callable[[], Results]
# Makes a Run from the inputs of a case, for forward alone or forward and backward.
Build: TypeAlias = Callable[[Results, bool], Run]


class UnavailableError(Exception):
    """Why a contender cannot take part in a case."""


@dataclass(frozen=True)
class Options:
    """What a user can choose; an entry takes what concerns it."""

    lengths: tuple[int, ...] = (1024, 4096)
    windows: tuple[int, ...] = (16, 64, 256)
    kinds: tuple[str, ...] = ()  # all
    passes: tuple[str, ...] = ("forward", "both")

    def chosen(self, kinds: Sequence[str]) -> Sequence[str]:
        """Those of an entry's kinds that are asked for."""
        return [kind for kind in kinds if not self.kinds or kind in self.kinds]


@dataclass(frozen=True)
class Contender:
    """One way to compute a case.

    Attributes:
        name: Column of the table.
        build: May raise UnavailableError.
        extra: What has to be asked for to see it: "", "peers" or "compile".
        function: What it computes, if not what the case defines. Its result is not
            checked then, unless there is a ``definition``.
        definition: Replaces that of the case.
        share: Cases in which it does the same work have the same key; if a call is
            slow it is measured once for all of them.
        compiled: Whether it is compiled when it first runs, which takes memory too.
    """

    name: str
    build: Build
    extra: str = ""
    function: str = ""
    definition: Build | None = None
    share: Hashable = None
    compiled: bool = False


@dataclass(frozen=True)
class Future:
    """Where the tokens of a causal case are: none may reach those before it.

    Attributes:
        axis: Of the tokens, in inputs and in the first result.
        inputs: How many inputs have them, the first ones.
    """

    axis: int
    inputs: int


@dataclass(frozen=True)
class Case:
    """One computation on inputs of one size.

    Attributes:
        labels: What tells the case from the others of its entry; "L" is the length
            and "pass" is "forward" or "both", with the backward pass.
        inputs: Makes the inputs, the same every time.
        definition: Gives the right results, in float64.
        contenders: The library first.
        useful_flops: Of the pairs that attend, and of projections.
        touched_bytes: Inputs and results, each counted once per pass.
        tensor_bytes: What extra memory is compared with: q, k, v and output.
        computed_flops: What the kernel executes, where it tells.
        tolerance: Of the largest error, relative to the largest right number.
        future: Of a causal case; contenders are then tried for leaks.
    """

    entry: str
    labels: Mapping[str, str | int]
    inputs: Callable[[], Results]
    definition: Build
    contenders: Sequence[Contender]
    useful_flops: int
    touched_bytes: int
    tensor_bytes: int
    computed_flops: int | None = None
    tolerance: float = 1e-4
    future: Future | None = None

    @property
    def backward(self) -> bool:
        """Whether the backward pass is part of it."""
        return self.labels["pass"] == "both"

    @property
    def group(self) -> tuple[tuple[str, str | int], ...]:
        """The labels but for the length."""
        return tuple(item for item in self.labels.items() if item[0] != "L")


@dataclass(frozen=True)
class Entry:
    """The cases of one operator or module.

    Attributes:
        name: What the command line calls it.
        summary: What is measured, in a few words.
        cases: Makes those that the options ask for.
        kinds: Those among its cases, if there are several.
    """

    name: str
    summary: str
    cases: Callable[[Options], Iterable[Case]]
    kinds: Sequence[str] = ()


_ENTRIES: dict[str, Entry] = {}


def register(
    name: str, summary: str, kinds: Sequence[str] = ()
) -> Callable[
    [Callable[[Options], Iterable[Case]]], Callable[[Options], Iterable[Case]]
]:
    """Decorator of the function that makes the cases of an entry.

    Raises:
        ValueError: The name is taken.
    """

    def decorator(
        cases: Callable[[Options], Iterable[Case]],
    ) -> Callable[[Options], Iterable[Case]]:
        if name in _ENTRIES:
            raise ValueError(f"register: names must be unique, got {name} twice")
        _ENTRIES[name] = Entry(name, summary, cases, kinds)
        return cases

    return decorator


def entries() -> dict[str, Entry]:
    """All entries by name; imports the files that register them."""
    for folder in ("ops", "nn"):
        package = importlib.import_module(f"{subquad.benchmarks.__name__}.{folder}")
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{package.__name__}.{module.name}")
    return dict(sorted(_ENTRIES.items()))


def all_kinds() -> list[str]:
    """The kinds of all entries, each once."""
    return list(dict.fromkeys(k for e in entries().values() for k in e.kinds))


def differentiated(
    function: Callable[[], Tensor],
    leaves: Sequence[Tensor],
    shape: Sequence[int],
    backward: bool,
) -> Run:
    """A run of ``function``: its output, and the gradients of ``leaves``.

    The gradient of the output, which has this shape, is drawn from a fixed seed, so
    that the results of all contenders compare.
    """
    if not backward:

        def forward() -> Results:
            with torch.no_grad():
                return (function(),)

        return forward

    for leaf in leaves:
        leaf.requires_grad_()
    gradient = random(shape, 99).to(leaves[0].dtype)

    def both() -> Results:
        output = function()
        gradients = torch.autograd.grad(output, leaves, gradient)
        return (output.detach(), *gradients)

    return both


def random(shape: Sequence[int], seed: int) -> Tensor:
    """Normal float32 numbers, the same every time."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
