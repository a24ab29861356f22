"""Cases of linear attention for the emulated kernels, and who sees whom in them."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from subquad import functional, reference
from subquad.reference.token_rows import token_rows
from tests import util

RESULTS = ("output", "state_kv", "state_k", "state_log_scale")


@dataclasses.dataclass(frozen=True)
class Case:
    """One call: sizes, and options as plain numbers and lists."""

    name: str
    B: int = 2
    H: int = 2
    Hkv: int = 0  # 0: as many as H
    L: int = 75
    S: int = 0  # 0: as many as L
    D: int = 8
    M: int = 0  # 0: as wide as D
    copies: int = 0
    shared_weights: bool = True
    log_scale: bool = False
    state: bool = False
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __str__(self):
        return self.name

    def sizes(self):
        S, Hkv, M = self.S or self.L, self.Hkv or self.H, self.M or self.D
        cu = self.options.get("cu_seqlens")
        rows = self.B if cu is None else len(cu) - 1
        features = self.D * max(self.copies, 1)
        if self.options.get("query_map") == "dpfp":
            features *= 2 * self.options.get("feature_degree", 1)
        return S, Hkv, M, rows, features

    def tensors(self, dtype):
        """Differentiable arguments; the same numbers for every dtype."""
        S, Hkv, M, rows, features = self.sizes()
        wide = torch.promote_types(dtype, torch.float32)
        shapes = {
            "query": (self.B, self.H, self.L, self.D),
            "key": (self.B, Hkv, S, self.D),
            "value": (self.B, Hkv, S, M),
        }
        tensors = util.random_tensors(shapes, dtype)
        if self.options.get("query_map", "identity") == "identity":
            # Denominators far from zero.
            tensors["query"], tensors["key"] = (
                tensors[name].abs() * self.D**-0.5 for name in ("query", "key")
            )
        tables = {
            "state_kv": (rows, Hkv, features, M),
            "state_k": (rows, Hkv, features),
        }
        if self.log_scale:
            steps = util.random_tensors({"m": (self.B, Hkv, S)}, wide, seed=1)["m"]
            levels = (0.1 * steps.abs()).cumsum(-1) - 1
            if "order" in self.options:
                order = torch.tensor(self.options["order"])[:, None].expand_as(levels)
                levels = torch.empty_like(levels).scatter_(-1, order, levels)
            tensors["key_log_scale"] = levels
        if self.state:
            tensors |= util.random_tensors(tables, wide, seed=2)
            tensors["state_k"] = tensors["state_k"].abs()
            if self.log_scale:
                tensors["state_log_scale"] = torch.full((rows, Hkv), -2.0, dtype=wide)
                tensors["state_log_scale"][-1] = -torch.inf  # nothing came before
        return tensors

    def arguments(self, dtype):
        """The other arguments."""
        wide = torch.promote_types(dtype, torch.float32)
        arguments = dict(self.options)
        for name, option in self.options.items():
            if isinstance(option, list):
                arguments[name] = torch.tensor(option)
        if self.copies:
            B = 1 if self.shared_weights else self.B
            S = self.sizes()[0]
            shapes = {
                "query_weight": (B, self.L, self.copies),
                "key_weight": (B, S, self.copies),
            }
            weights = util.random_tensors(shapes, wide, seed=3)
            arguments |= {name: x.abs() for name, x in weights.items()}
        return arguments

    def rows(self):
        """Row and rank of queries and of keys, [B, L] and [B, S]."""
        arguments = self.arguments(torch.float32)
        device = torch.device("cpu")

        def of(prefix, tokens, packed):
            names = ("lengths", "starts", "order")
            given = [arguments.get(prefix + name) for name in names]
            return token_rows(self.B, tokens, device, *given, packed)

        packed = arguments.get("cu_seqlens")
        keys = of("", self.sizes()[0], packed)
        if arguments.get("causal"):
            return keys, keys
        return of("query_", self.L, arguments.get("query_cu_seqlens", packed)), keys

    def visible(self):
        """Whether query i sees key j, [B, L, S]."""
        (query_row, query_rank), (key_row, key_rank) = self.rows()
        same = (query_row[:, :, None] == key_row[:, None]) & (key_row >= 0)[:, None]
        if not self.options.get("causal"):
            return same
        blindspot = self.options.get("blindspot", 1)
        end = query_rank + 1 if blindspot == 1 else query_rank // blindspot * blindspot
        return same & (key_rank[:, None] < end[:, :, None])


def _case(name, **fields):
    own = {field.name for field in dataclasses.fields(Case)}
    sizes = {key: fields.pop(key) for key in list(fields) if key in own}
    return Case(name, **sizes, options=fields)


def _maps(query_map, key_map=None):
    return {"query_map": query_map, "key_map": key_map or query_map}


_ORDER = {
    "lengths": [70, 33],
    "order": [
        torch.randperm(75, generator=torch.Generator().manual_seed(i)).tolist()
        for i in range(2)
    ],
}
_PACKED = {"cu_seqlens": [0, 3, 3, 70, 130]}
# One over it is a number in float16, which plain PyTorch computes with.
_FLOOR = 1e-3

CASES = [
    _case("causal", causal=True),
    _case("full", B=1, L=333, S=270),
    _case("full-cross", L=77, S=75),
    _case("several-chunks", L=150, causal=True, **_maps("elu")),
    _case(
        "blindspot",
        L=130,
        causal=True,
        blindspot=3,
        floor=_FLOOR,
        **_maps("relu", "sigmoid"),
    ),
    _case("long-blindspot", B=1, L=150, causal=True, blindspot=70, **_maps("elu")),
    _case("endless-blindspot", L=77, causal=True, blindspot=2**40, state=True),
    _case("numerator", causal=True, normalize=False, scale=0.3, feature_offset=0.2),
    _case("floor", causal=True, floor=9.0, scale=0.5, **_maps("relu")),
    _case("no-floor", L=5, causal=True, blindspot=3, floor=0.0, **_maps("relu")),
    _case("softmax", causal=True, D=40, **_maps("softmax", "exp"), feature_offset=0.1),
    _case("full-softmax", L=70, S=5, **_maps("sigmoid", "softmax")),
    _case("dpfp", causal=True, D=5, feature_degree=3, **_maps("dpfp")),
    _case("copies", causal=True, copies=2, **_maps("relu"), feature_offset=0.01),
    _case("copies-batch", L=77, copies=3, shared_weights=False, **_maps("elu")),
    _case("dpfp-copies", L=20, D=3, copies=2, feature_degree=2, **_maps("dpfp")),
    _case("log-scale", L=130, causal=True, log_scale=True),
    _case("state", causal=True, state=True, **_maps("elu")),
    _case("full-state", L=7, S=75, state=True, **_maps("elu")),
    _case("state-blindspot", L=77, causal=True, blindspot=5, state=True),
    _case("state-log-scale", causal=True, log_scale=True, state=True, **_maps("elu")),
    _case("spans", causal=True, lengths=[60, 0], starts=[11, 3], **_maps("elu")),
    _case(
        "full-spans",
        S=77,
        lengths=[70, 1],
        starts=[7, 2],
        query_lengths=[66, 75],
        query_starts=[9, 0],
        floor=_FLOOR,
        **_maps("elu"),
    ),
    _case("order", causal=True, **_ORDER, **_maps("elu")),
    _case("order-blindspot", causal=True, blindspot=2, state=True, **_ORDER),
    _case("order-log-scale", causal=True, log_scale=True, state=True, **_ORDER),
    _case("packed", B=1, L=140, causal=True, **_PACKED, **_maps("elu")),
    _case(
        "packed-blindspot", B=1, L=140, causal=True, blindspot=66, **_PACKED, state=True
    ),
    _case(
        "packed-all",
        B=1,
        H=4,
        Hkv=2,
        L=140,
        M=5,
        causal=True,
        log_scale=True,
        state=True,
        floor=_FLOOR,
        **_PACKED,
        **_maps("elu"),
    ),
    _case(
        "packed-cross",
        B=1,
        L=70,
        S=140,
        query_cu_seqlens=[0, 2, 5, 5, 70],
        state=True,
        **_PACKED,
        **_maps("elu"),
    ),
    _case("grouped", H=6, Hkv=2, D=9, M=20, causal=True, **_maps("elu")),
    _case("grouped-full", H=4, Hkv=1, L=5, S=70, M=3, **_maps("relu")),
    _case("wide", B=1, H=1, L=70, D=100, M=70, causal=True, state=True, **_maps("elu")),
    _case("wide-full", B=1, H=1, L=65, D=65, M=130, **_maps("sigmoid")),
    _case("single", L=1, causal=True, log_scale=True, state=True),
]
BY_NAME = {case.name: case for case in CASES}


class Emulated(TorchDispatchMode):
    """Within it the emulator computes linear attention."""

    def __init__(self, ops):
        super().__init__()
        ours = torch.ops.subquad
        self.instead = {
            ours._linear_attention_forward.default: ops._linear_attention_forward,
            ours._linear_attention_backward.default: ops._linear_attention_backward,
        }
        self.arguments = None  # of the last backward

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.subquad._linear_attention_backward.default:
            self.arguments = args
        return self.instead.get(func, func)(*args, **(kwargs or {}))


def given_gradients(case, dtype):
    """Of the results: random ones, the same numbers for every dtype."""
    _, Hkv, M, rows, features = case.sizes()
    wide = torch.promote_types(dtype, torch.float32)
    output = util.random_tensors({"x": (case.B, case.H, case.L, M)}, dtype, seed=4)
    shapes = {
        "state_kv": (rows, Hkv, features, M),
        "state_k": (rows, Hkv, features),
    }
    if case.log_scale:
        shapes["state_log_scale"] = (rows, Hkv)
    # The states sum as many products as there are tokens.
    states = util.random_tensors(shapes, wide, seed=5)
    return {"output": output["x"]} | {k: 0.1 * x for k, x in states.items()}


def results(op, tensors, arguments, of_results) -> dict[str, Tensor]:
    """Results and gradients by name."""
    leaves = {name: x.detach().requires_grad_() for name, x in tensors.items()}
    found = dict(zip(RESULTS, op(**leaves, **arguments), strict=True))
    wanted = [found[name] for name in of_results]
    gradients = torch.autograd.grad(
        wanted, list(leaves.values()), list(of_results.values()), materialize_grads=True
    )
    named = zip(leaves, gradients, strict=True)
    return {k: x.detach() for k, x in found.items()} | {
        f"grad_{name}": gradient for name, gradient in named
    }


def cpu_results(tensors, arguments, of_results) -> dict[str, Tensor]:
    """The same from the CPU operator."""
    return results(
        functional.linear_attention_with_state, tensors, arguments, of_results
    )


def emulated_results(ops, tensors, arguments, of_results) -> dict[str, Tensor]:
    """The same from the emulator."""
    with Emulated(ops):
        return cpu_results(tensors, arguments, of_results)


def reference_results(tensors, arguments, of_results) -> dict[str, Tensor]:
    """The same from plain PyTorch."""
    return results(
        reference.linear_attention_with_state, tensors, arguments, of_results
    )
