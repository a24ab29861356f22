"""Mechanisms and patterns that every module test runs over."""

import dataclasses
from typing import Any

import torch
from torch import Tensor

from subquad.nn import ProjectedAttention, get_mechanism

WIDTH, HEADS = 24, 4


@dataclasses.dataclass(frozen=True)
class Pattern:
    """A mechanism with the options of one test case."""

    mechanism: str
    cross: bool = False
    causal: bool = False
    options: tuple[tuple[str, Any], ...] = ()
    # Whether a NaN that a query does not see stays out of its result, in the future
    # as well as in the padding (PyTorch's kernel multiplies it by zero).
    isolates: bool = True

    def __str__(self) -> str:
        flags = [flag for flag in ("cross", "causal") if getattr(self, flag)]
        flags += [f"{name}{value}" for name, value in self.options]
        return "-".join([self.mechanism, *flags])

    @property
    def decodes(self) -> bool:
        """Whether steps are defined to equal the parallel form."""
        if self.mechanism == "cosformer":
            return "max_length" in dict(self.options) and (self.causal or self.cross)
        return self.causal or (self.mechanism != "local" and self.cross)

    @property
    def weighs(self) -> bool:
        """Whether there are weights of single keys to return."""
        return self.mechanism in ("local", "softmax")

    @property
    def steady(self) -> dict[str, Any]:
        """Options with which training draws no random directions."""
        return {"sample_scheme": "fixed"} if self.mechanism == "performer" else {}

    @property
    def dtype(self) -> torch.dtype:
        """float64 where denominators come near zero, and roundings grow."""
        wild = ("proj_method", "fourier") in self.options
        return torch.float64 if wild else torch.float32

    def build(self, dtype: torch.dtype | None = None, **more: Any) -> Any:
        """The module, with weights from a fixed seed and biases that are not zero."""
        torch.manual_seed(0)
        options = {**dict(self.options), "cross": self.cross, "causal": self.causal}
        cls: Any = get_mechanism(self.mechanism)
        module: ProjectedAttention = cls(WIDTH, HEADS, **{**options, **more})
        for name, parameter in module.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(parameter)
        return module.to(dtype or self.dtype).eval()

    def inputs(
        self, L: int = 13, S: int = 9, B: int = 3, dtype: torch.dtype | None = None
    ) -> tuple[Tensor, Tensor]:
        """Query and key input, the same tensor in self-attention."""
        generator = torch.Generator().manual_seed(1)
        dtype = dtype or self.dtype
        query = torch.randn(L, B, WIDTH, generator=generator).to(dtype)
        if not self.cross:
            return query, query
        return query, torch.randn(S, B, WIDTH, generator=generator).to(dtype)


def _patterns() -> list[Pattern]:
    rotary = (("num_kv_heads", 2), ("rotary_base", 100.0))
    patterns = []
    for cross in (False, True):
        for causal in (False, True):
            for extra in ((), rotary):
                window = (("window_size", 3), *extra)
                patterns.append(Pattern("local", cross, causal, window))
                patterns.append(Pattern("softmax", cross, causal, extra, False))
                patterns.append(Pattern("performer", cross, causal, extra))
                length = (("max_length", 64), *extra) if causal else extra
                patterns.append(Pattern("cosformer", cross, causal, length))
                patterns.append(Pattern("linear", cross, causal, extra))
    length = ("max_length", 64)
    patterns.append(Pattern("cosformer", True, False, (length, ("act_fun", "elu"))))
    for cross, causal, method in (
        (False, True, "relu"),
        (False, True, "fourier"),
        (True, False, "fourier"),
        (True, True, "dpfp"),
        (False, True, "relu-only"),
        (False, False, "sigmoid-only"),
        (False, True, "mlp-fourier"),
    ):
        options = (("proj_method", method), ("approx_attn_dim", 14))
        patterns.append(Pattern("performer", cross, causal, options))
    buckets = (("blindspot_size", 3),)
    patterns.append(Pattern("linear", False, True, buckets))
    weighted = (("cos_weighting", True), length)
    patterns.append(Pattern("performer", False, True, weighted))
    patterns.append(Pattern("performer", True, True, weighted))
    return patterns


PATTERNS = _patterns()
# Each mechanism in each pattern once, for tests that compile, and one that learns
# its features.
FEW = [
    p
    for p in PATTERNS
    if (("rotary_base", 100.0) in p.options) is p.causal
    and not {"act_fun", "blindspot_size", "proj_method"} & dict(p.options).keys()
]
FEW += [p for p in PATTERNS if ("proj_method", "mlp-fourier") in p.options]
WEIGHING = [pattern for pattern in PATTERNS if pattern.weighs]
SELF = [pattern for pattern in PATTERNS if not pattern.cross]
CROSS = [pattern for pattern in PATTERNS if pattern.cross]
DECODING = [pattern for pattern in PATTERNS if pattern.decodes]
CAUSAL = [pattern for pattern in PATTERNS if pattern.causal]


def close(actual: Tensor, expected: Tensor, atol: float = 1e-5) -> None:
    """Compare with the tolerance of float32 at numbers near 1."""
    torch.testing.assert_close(actual, expected, atol=atol, rtol=1e-5)


def decode(
    module: Any,
    query: Tensor,
    cuts: list[int],
    key: Tensor | None = None,
    padding: Tensor | None = None,
    state: dict[str, Any] | None = None,
) -> Tensor:
    """Feed ``query [L, B, C]`` in pieces of the lengths ``cuts``."""
    state = {} if state is None else state
    outputs = []
    for piece in query.split(cuts):
        begin = sum(len(output) for output in outputs)
        options: dict[str, Any] = {}
        if key is not None:
            options = {"key": key, "static_kv": True, "key_padding_mask": padding}
        elif padding is not None:
            options = {"key_padding_mask": padding[:, begin : begin + len(piece)]}
        outputs.append(module(piece, incremental_state=state, **options)[0])
    return torch.cat(outputs)
