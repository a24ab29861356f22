"""What several test files share: cases of window attention and comparisons."""

import dataclasses
import math
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]

# Tensor arguments with a gradient, in the order of the schema.
DIFFERENTIABLE = (
    "query",
    "key",
    "value",
    "bias",
    "key_bias",
    "relative_key",
    "summary_key",
    "summary_value",
    "summary_relative_key",
)
_INDICES = (
    "query_position",
    "lengths",
    "starts",
    "query_lengths",
    "query_starts",
    "order",
    "query_order",
    "cu_seqlens",
    "query_cu_seqlens",
    "summary_lengths",
    "dropout_state",
)


@dataclasses.dataclass(frozen=True)
class Case:
    """One call of window attention: sizes, and options as plain numbers and lists.

    ``bias``, ``relative_key`` and ``summary_relative_key`` are the number of heads
    of the table, 1 or H; ``key_bias`` is whether there is one.
    """

    name: str
    block: int
    left: int
    right: int
    B: int = 2
    H: int = 2
    Hkv: int = 0  # 0: as many as H
    L: int = 17
    S: int = -1  # -1: as many as L
    D: int = 8
    M: int = 0  # 0: as wide as D
    C: int = 0
    bias: int = 0
    key_bias: bool = False
    relative_key: int = 0
    summary_relative_key: int = 0
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        return self.name

    @property
    def R(self) -> int:
        """Number of rows."""
        cu = self.options.get("cu_seqlens")
        return self.B if cu is None else len(cu) - 1

    @property
    def shape(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the differentiable arguments that the case has."""
        S = self.L if self.S < 0 else self.S
        Hkv, M = self.Hkv or self.H, self.M or self.D
        W = self.left + self.block + self.right
        shape: dict[str, tuple[int, ...]] = {
            "query": (self.B, self.H, self.L, self.D),
            "key": (self.B, Hkv, S, self.D),
            "value": (self.B, Hkv, S, M),
        }
        if self.bias:
            shape["bias"] = (self.bias, self.block, W)
        if self.key_bias:
            shape["key_bias"] = (self.B, S)
        if self.relative_key:
            shape["relative_key"] = (self.relative_key, W, self.D)
        if self.C:
            shape["summary_key"] = (self.R, Hkv, self.C, self.D)
            shape["summary_value"] = (self.R, Hkv, self.C, M)
        if self.summary_relative_key:
            # One line more than there are summaries: it must stay unused.
            shape["summary_relative_key"] = (
                self.summary_relative_key,
                self.C + 1,
                self.D,
            )
        return shape

    def arguments(self, device: torch.device | str = "cpu") -> dict[str, Any]:
        """Arguments that are not differentiable."""
        arguments: dict[str, Any] = {
            "block": self.block,
            "left": self.left,
            "right": self.right,
        }
        for name, option in self.options.items():
            if name in _INDICES:
                option = torch.tensor(option, dtype=torch.int64, device=device)
            arguments[name] = option
        return arguments

    def tensors(
        self,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
        seed: int = 0,
    ) -> dict[str, Tensor]:
        """Normal random differentiable arguments; logits have deviations near 2."""
        shape = self.shape
        tensors = random_tensors(shape, torch.float64, device, seed)
        for name in shape.keys() & {"relative_key", "summary_relative_key"}:
            tensors[name] *= self.D**-0.5
        return {name: x.to(dtype) for name, x in tensors.items()}


def random_tensors(
    shapes: Mapping[str, tuple[int, ...]],
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> dict[str, Tensor]:
    """Normal random tensors; the same numbers for every dtype and device."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator, dtype=torch.float64).to(
            device, dtype
        )
        for name, shape in shapes.items()
    }


def _case(name: str, window: tuple[int, int, int], **fields: Any) -> Case:
    own = {field.name for field in dataclasses.fields(Case)}
    sizes = {key: fields.pop(key) for key in list(fields) if key in own}
    return Case(name, *window, **sizes, options=fields)


_DROPOUT = {"dropout": 0.3, "dropout_state": [0x1234567890ABCDE, 0x1F00000003]}

_LEFT_PADDING = {
    "query_lengths": [5, 3],
    "query_order": [[0, 1, 2, 3, 4], [2, 3, 4, 0, 1]],
    "lengths": [4, 2],
    "order": [[2, 3, 4, 5, 0, 1], [4, 5, 0, 1, 2, 3]],
}
# The second row of keys is a span.
_SCATTERED = {
    "query_lengths": [6, 4],
    "query_order": [[0, 1, 2, 4, 5, 6, 3], [1, 2, 4, 6, 0, 3, 5]],
    "lengths": [5, 4],
    "order": [[1, 3, 4, 6, 7, 0, 2, 5], [2, 3, 4, 5, 0, 1, 6, 7]],
}

# Every option of the schema at least once, then combinations.
CASES = [
    # Windows.
    _case("block", (4, 0, 0)),
    _case("block-left", (4, 4, 0)),
    _case("block-overlap", (4, 3, 2)),
    _case("block-causal", (4, 4, 0), causal=True),
    _case("block-overlap-causal", (5, 2, 3), causal=True),
    _case("sliding", (1, 3, 2)),
    _case("sliding-left", (1, 5, 0)),
    _case("sliding-right", (1, 0, 3)),
    _case("sliding-causal", (1, 4, 0), causal=True),
    _case("self-only", (1, 0, 0)),
    _case("everything", (32, 0, 0)),
    _case("everything-causal", (1, 40, 40), causal=True),
    # Positions.
    _case("offset", (4, 3, 2), L=5, S=19, query_offset=7),
    _case("offset-causal", (1, 4, 0), L=5, S=19, query_offset=14, causal=True),
    _case("offset-negative", (3, 2, 1), L=9, S=7, query_offset=-4),
    _case("offset-beyond", (3, 2, 0), L=9, S=7, query_offset=3),
    _case("position", (3, 2, 1), L=6, S=11, query_position=[3, 0, 10, 3, -1, 14]),
    _case(
        "position-batch",
        (3, 2, 1),
        L=4,
        S=11,
        query_position=[[8, 1, 1, 5], [0, 2, 9, 30]],
    ),
    _case(
        "position-batch-causal",
        (1, 3, 0),
        L=4,
        S=11,
        causal=True,
        query_position=[[0, 3, 6, 9], [10, 7, 4, 1]],
    ),
    # Spans.
    _case("lengths", (4, 3, 2), lengths=[17, 5]),
    _case("lengths-zero", (4, 3, 2), lengths=[0, 9], causal=True),
    _case("starts", (4, 3, 2), starts=[3, 0], lengths=[12, 6]),
    _case("query-lengths", (4, 3, 2), query_lengths=[4, 17]),
    _case(
        "spans",
        (4, 3, 2),
        S=13,
        starts=[5, 2],
        lengths=[8, 4],
        query_starts=[2, 10],
        query_lengths=[13, 7],
    ),
    _case(
        "spans-position",
        (1, 2, 1),
        L=6,
        S=13,
        starts=[5, 2],
        lengths=[8, 4],
        query_position=[0, 1, 2, 3, 5, 8],
    ),
    _case("packed", (4, 3, 2), B=1, cu_seqlens=[0, 6, 6, 7, 17]),
    _case("packed-causal", (1, 4, 0), B=1, causal=True, cu_seqlens=[0, 9, 17]),
    _case(
        "packed-cross",
        (3, 2, 1),
        B=1,
        S=20,
        cu_seqlens=[0, 8, 8, 20],
        query_cu_seqlens=[0, 9, 13, 17],
        query_offset=1,
    ),
    _case("packed-gaps", (4, 3, 2), B=1, cu_seqlens=[2, 6, 15]),
    # Heads and widths.
    _case("grouped", (4, 3, 2), H=6, Hkv=2),
    _case("one-key-head", (1, 3, 0), H=3, Hkv=1, causal=True),
    _case("wide-values", (4, 3, 2), D=5, M=11),
    _case("narrow-values", (1, 3, 2), D=19, M=1),
    _case("scale", (4, 3, 2), scale=0.7),
    # Terms of the logits.
    _case("bias", (4, 3, 2), bias=2),
    _case("bias-shared", (4, 3, 2), bias=1),
    _case("bias-sliding-causal", (1, 4, 0), bias=2, causal=True),
    _case("key-bias", (4, 3, 2), key_bias=True, lengths=[17, 5]),
    _case("relative", (4, 3, 2), relative_key=2),
    _case("relative-shared-sliding", (1, 3, 2), relative_key=1),
    # Summaries.
    _case("summaries", (4, 3, 2), C=5),
    _case("summaries-lengths", (4, 3, 2), C=5, summary_lengths=[0, 3]),
    _case(
        "summaries-limit",
        (4, 4, 0),
        C=5,
        causal=True,
        summary_block=4,
        summary_offset=-1,
    ),
    _case(
        "summaries-per-block",
        (1, 2, 0),
        C=7,
        causal=True,
        summary_block=5,
        summaries_per_block=2,
        summary_lengths=[7, 5],
    ),
    _case(
        "summaries-relative",
        (4, 3, 2),
        C=5,
        summary_relative_key=2,
        summary_block=4,
        summary_offset=1,
    ),
    _case("summaries-relative-shared", (1, 2, 2), C=4, summary_relative_key=1),
    _case("summaries-only", (4, 0, 0), C=5, lengths=[0, 2], summary_lengths=[5, 0]),
    _case(
        "summaries-packed",
        (4, 3, 2),
        B=1,
        C=3,
        cu_seqlens=[0, 6, 6, 17],
        summary_lengths=[3, 1, 2],
    ),
    # Rows whose tokens lie scattered.
    _case("order-left-padding", (4, 3, 2), L=5, S=6, **_LEFT_PADDING),
    _case("order", (3, 1, 1), L=7, S=8, **_SCATTERED),
    _case(
        "order-keys",
        (4, 3, 2),
        L=6,
        S=8,
        query_offset=2,
        lengths=_SCATTERED["lengths"],
        order=_SCATTERED["order"],
    ),
    _case(
        "order-position",
        (1, 2, 1),
        L=7,
        S=8,
        causal=True,
        query_position=[4, 0, 1, 1, 2, 6, 5],
        **_SCATTERED,
    ),
    _case(
        "order-all",
        (3, 2, 1),
        H=4,
        Hkv=2,
        L=7,
        S=8,
        M=5,
        C=4,
        bias=1,
        key_bias=True,
        relative_key=4,
        summary_relative_key=1,
        summary_lengths=[4, 2],
        summary_block=2,
        query_offset=1,
        **_SCATTERED,
    ),
    # Dropout.
    _case("dropout", (4, 3, 2), **_DROPOUT),
    _case("dropout-summaries", (1, 3, 0), C=3, causal=True, **_DROPOUT),
    # All at once.
    _case(
        "all",
        (4, 3, 2),
        H=4,
        Hkv=2,
        S=19,
        D=6,
        M=9,
        C=5,
        bias=4,
        key_bias=True,
        relative_key=1,
        summary_relative_key=4,
        starts=[4, 0],
        lengths=[15, 11],
        query_starts=[0, 3],
        query_lengths=[16, 14],
        query_offset=2,
        causal=True,
        summary_lengths=[5, 3],
        summary_block=3,
        summaries_per_block=2,
        scale=0.5,
        **_DROPOUT,
    ),
    _case(
        "all-packed",
        (3, 2, 1),
        B=1,
        H=4,
        Hkv=1,
        M=5,
        C=4,
        bias=1,
        key_bias=True,
        relative_key=4,
        summary_relative_key=1,
        cu_seqlens=[0, 5, 5, 17],
        summary_lengths=[4, 0, 3],
        summary_block=4,
        summary_offset=1,
        **_DROPOUT,
    ),
]

# Sizes around those of the kernels' tiles.
LARGE_CASES = [
    _case("block-64", (64, 0, 0), B=1, L=192, D=64),
    _case("block-64-overlap", (64, 64, 64), B=1, L=331, D=64, lengths=[300]),
    _case("block-48-causal", (48, 31, 0), L=150, D=40, causal=True, lengths=[150, 77]),
    _case("sliding-64", (1, 64, 64), B=1, L=259, D=64),
    _case("sliding-200-causal", (1, 199, 0), B=1, L=517, D=32, causal=True),
    _case("sliding-16-wide", (1, 16, 16), B=1, L=129, D=128, M=80),
    _case("sliding-odd-width", (1, 20, 7), B=1, L=101, D=33, M=65),
    _case("dense-causal", (1, 300, 0), B=1, H=1, L=257, D=16, causal=True),
    _case("width-1", (8, 8, 0), L=70, D=1, M=1),
    _case(
        "grouped-packed",
        (16, 16, 16),
        B=1,
        H=4,
        Hkv=2,
        L=230,
        D=24,
        cu_seqlens=[0, 100, 101, 230],
    ),
    _case(
        "all-large",
        (32, 40, 20),
        H=4,
        Hkv=2,
        L=150,
        S=170,
        D=40,
        M=24,
        C=37,
        bias=4,
        key_bias=True,
        relative_key=4,
        summary_relative_key=1,
        lengths=[170, 90],
        summary_lengths=[37, 20],
        summary_block=16,
        summaries_per_block=4,
        **_DROPOUT,
    ),
    _case(
        "cross-position",
        (1, 17, 17),
        L=90,
        S=200,
        D=32,
        query_position=[t * 200 // 90 for t in range(90)],
    ),
    # Sequences of several segments, windows and summaries of several chunks.
    _case("long-sliding", (1, 16, 8), B=1, L=2311, bias=2, relative_key=1),
    _case("long-causal", (1, 31, 0), B=1, H=2, Hkv=1, L=1801, causal=True, C=70),
    _case("long-block", (16, 16, 16), B=1, L=2200, starts=[37], lengths=[2001]),
    _case("long-packed", (8, 8, 0), B=1, L=1900, cu_seqlens=[0, 3, 1300, 1301, 1890]),
    _case("wide-window", (1, 600, 0), B=1, H=1, L=650, causal=True, key_bias=True),
    _case("many-keys", (1, 3000, 3000), L=5, S=1501, D=16, lengths=[1501, 1100]),
    _case(
        "many-summaries",
        (8, 8, 8),
        B=1,
        H=1,
        L=49,
        C=1203,
        summary_block=16,
        summary_offset=100,
        summaries_per_block=400,
        **_DROPOUT,
    ),
    _case("few-of-many", (4, 20, 20), B=1, L=33, S=2500, query_offset=1700),
    _case(
        "shuffled-positions",
        (1, 40, 40),
        B=1,
        L=613,
        S=1300,
        query_position=[t * 997 % 1300 for t in range(613)],
    ),
]


def rows(case: Case) -> Iterator[tuple[int, int, Sequence[int], Sequence[int]]]:
    """Batch entry, row, valid queries and valid keys of every row."""
    options = case.options
    if "cu_seqlens" in options:
        cu = options["cu_seqlens"]
        query_cu = options.get("query_cu_seqlens", cu)
        for r in range(len(cu) - 1):
            queries = range(query_cu[r], query_cu[r + 1])
            yield 0, r, queries, range(cu[r], cu[r + 1])
        return
    S = case.shape["key"][2]
    for b in range(case.B):
        spans = []
        for prefix, size in (("query_", case.L), ("", S)):
            start = options.get(prefix + "starts", [0] * case.B)[b]
            length = options.get(prefix + "lengths", [size] * case.B)[b]
            tokens: Sequence[int] = range(start, start + length)
            if prefix + "order" in options:
                tokens = options[prefix + "order"][b][:length]
            spans.append(tokens)
        yield b, b, *spans


def sight(
    case: Case,
) -> Iterator[tuple[int, int, int, int, list[tuple[int, int]], int]]:
    """What every valid query sees, by loops.

    Yields:
        Batch entry, row, query, its line p - b of the bias, the (slot, key) pairs
        that it sees and the number of summaries that it sees.
    """
    options = case.options
    for b, r, queries, keys in rows(case):
        for rank, i in enumerate(queries):
            p = rank + options.get("query_offset", 0)
            if "query_position" in options:
                table = options["query_position"]
                p = table[b][i] if isinstance(table[0], list) else table[i]
            first = p // case.block * case.block
            pairs = []
            for slot in range(case.left + case.block + case.right):
                j = first - case.left + slot
                if 0 <= j < len(keys) and not (options.get("causal") and j > p):
                    pairs.append((slot, keys[j]))
            limit = options.get("summary_lengths", [case.C] * (r + 1))[r]
            if options.get("summary_block", 0) > 0:
                reached = p // options["summary_block"]
                reached *= options.get("summaries_per_block", 1)
                reached += options.get("summary_offset", 0)
                limit = min(max(reached, 0), limit)
            yield b, r, i, p - first, pairs, limit


def results(
    op: Any,
    tensors: Mapping[str, Tensor],
    arguments: Mapping[str, Any],
    gradients: tuple[Tensor, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Output, lse and the gradients of all ``tensors``, by name.

    Args:
        op: A window attention that returns output and lse.
        tensors: Differentiable arguments.
        arguments: The others.
        gradients: Of output and lse; normal random if None.
    """
    leaves = {k: v.detach().requires_grad_() for k, v in tensors.items()}
    output, lse = op(**leaves, **arguments)
    if gradients is None:
        gradients = output_gradients(output, lse)
    grads = torch.autograd.grad((output, lse), list(leaves.values()), gradients)
    named = {f"grad_{k}": g for k, g in zip(leaves, grads, strict=True)}
    return {"output": output.detach(), "lse": lse.detach(), **named}


def output_gradients(output: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
    """Random gradients of output and lse; the same for every dtype and device."""
    shapes = {"output": tuple(output.shape), "lse": tuple(lse.shape)}
    grads = random_tensors(shapes, torch.float64, output.device, seed=99)
    return grads["output"].to(output.dtype), grads["lse"].to(lse.dtype)


def error(actual: Tensor, expected: Tensor) -> float:
    """Largest absolute difference; infinities must be the same on both sides."""
    actual, expected = actual.double(), expected.double()
    same = actual == expected
    difference = torch.where(same, 0, actual - expected).abs()
    return float(difference.max()) if difference.numel() else 0.0


def largest(x: Tensor) -> float:
    """Largest finite absolute value."""
    finite = x[x.isfinite()].abs()
    return float(finite.max()) if finite.numel() else 0.0


def assert_as_exact_as(
    actual: Mapping[str, Tensor],
    same_dtype: Mapping[str, Tensor],
    exact: Mapping[str, Tensor],
    units: float = 4,
) -> None:
    """Check the error against that of plain PyTorch in the same dtype.

    The error may be twice as large, plus ``units`` roundings of the largest
    number (or of 1) in the dtype of the result. Weights that backward makes from
    the log-sum-exp, exp(logit - lse), carry the rounding of the latter: so
    gradients may be off by as much.
    """
    assert actual.keys() == exact.keys()
    of_weights = 0.0
    if "lse" in actual:
        lse = actual["lse"]
        of_weights = torch.finfo(lse.dtype).eps * largest(lse)
    for name, result in actual.items():
        assert result.shape == exact[name].shape, name
        unit = units * torch.finfo(result.dtype).eps
        if name.startswith("grad_"):
            unit += of_weights
        floor = unit * max(1.0, largest(exact[name]))
        allowed = 2 * error(same_dtype[name], exact[name]) + floor
        found = error(result, exact[name])
        assert found <= allowed, f"{name}: error {found:.3g}, allowed {allowed:.3g}"


def bits(x: Tensor) -> Tensor:
    """Bit patterns, so that NaN equals itself and -0 differs from 0."""
    sizes = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return x.contiguous().view(sizes[x.element_size()])


def assert_same_bits(
    actual: Tensor, expected: Tensor, where: Tensor | None = None, name: str = ""
) -> None:
    """Check that two tensors are the same bit for bit (where a mask is True)."""
    assert actual.shape == expected.shape
    same = bits(actual) == bits(expected)
    if where is not None:
        same = same | ~where
    assert bool(same.all()), (
        f"{name}: bits differ at {(~same).nonzero()[:4].tolist()}: "
        f"{actual[~same][:4].tolist()} instead of {expected[~same][:4].tolist()}"
    )


def is_finite_or_empty(lse: Tensor) -> bool:
    """Whether every log-sum-exp is a number or -inf."""
    return bool((lse.isfinite() | (lse == -math.inf)).all())


def run_python(*arguments: str, **environment: str) -> str:
    """Output of a Python process that finds what this one finds.

    Args:
        *arguments: Of the interpreter.
        **environment: Variables to set.
    """
    path = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, sys.path)])
    result = subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout.strip()
