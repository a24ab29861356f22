"""What operators on the tokens of rows have in common, as a base of test classes.

A case has differentiable tensors, some of them indexed by tokens, and options: rows
by ``lengths``, ``starts``, ``order`` or ``cu_seqlens``, and the operator's own.
"""

import dataclasses
import io
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import pytest
import torch
from torch._dynamo.utils import counters

from subquad.reference.token_rows import token_rows
from tests import util

ROW_OPTIONS = ("lengths", "starts", "order", "cu_seqlens")

# Rows of 17 tokens; the batch is 2, or 1 for packed rows.
ROWS: dict[str, dict[str, Any]] = {
    "lengths": {"lengths": [17, 5]},
    "lengths-zero": {"lengths": [0, 9]},
    "starts": {"starts": [3, 0], "lengths": [12, 6]},
    "order": {
        "lengths": [7, 16],
        "order": [
            [16, 3, 4, 0, 9, 2, 11, 1, 5, 6, 7, 8, 10, 12, 13, 14, 15],
            [*range(1, 17), 0],  # a span
        ],
    },
    "packed": {"cu_seqlens": [0, 6, 6, 7, 17]},
    "packed-gaps": {"cu_seqlens": [2, 6, 15]},
}


@dataclasses.dataclass(frozen=True)
class Case:
    """One call: shapes of the differentiable tensors, and the other arguments."""

    name: str
    shape: Mapping[str, tuple[int, ...]]
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        return self.name

    def arguments(self, device="cpu"):
        return {
            name: torch.tensor(option, dtype=torch.int64, device=device)
            if name in ROW_OPTIONS
            else option
            for name, option in self.options.items()
        }

    @property
    def lead(self):
        """Shape of the first tensor."""
        return next(iter(self.shape.values()))

    def rows(self, device="cpu"):
        """Row of every token, -1 for none, and its rank there: both [B, L]."""
        B, _, L, _ = self.lead
        given = self.arguments(device)
        rows = {name: x for name, x in given.items() if name in ROW_OPTIONS}
        return token_rows(B, L, torch.device(device), **rows)


def layouts(x):
    """The same [B, H, L, D] numbers over other strides."""
    B, H, L, D = x.shape
    yield "[L, B, H * D]", x.permute(2, 0, 1, 3).contiguous().permute(1, 2, 0, 3)
    yield "[B, L, H * D]", x.transpose(1, 2).contiguous().transpose(1, 2)
    wide = torch.full((L, B, 3 * H * D + 1), math.nan, dtype=x.dtype, device=x.device)
    view = wide[:, :, H * D + 1 : 2 * H * D + 1].view(L, B, H, D).permute(1, 2, 0, 3)
    view.copy_(x)
    yield "part of a wide projection", view
    gaps = torch.full((B, H, 2 * L, D + 3), math.nan, dtype=x.dtype, device=x.device)
    view = gaps[:, :, ::2, 1 : D + 1]
    view.copy_(x)
    yield "every other row", view


class TokenOperator:
    """Tests of ``op``, which returns two tensors, against ``reference``.

    Attributes:
        public: Names of the operators to call through the dispatcher.
        per_token: Arguments [B, heads, L, width].
        lines: Arguments [B, heads, L], dense.
        token_outputs: Which of the results, output and lse, are indexed by tokens;
            the others are by rows.
        units: Roundings that results may be off by.
    """

    public: ClassVar[tuple[str, ...]]
    op: ClassVar[Callable[..., Any]]
    reference: ClassVar[Callable[..., Any]]
    per_token: ClassVar[tuple[str, ...]]
    lines: ClassVar[tuple[str, ...]] = ()
    token_outputs: ClassVar[tuple[str, ...]]
    units: ClassVar[float] = 4

    def tensors(self, case, dtype=torch.float64, device="cpu", seed=0):
        """The differentiable arguments."""
        return util.random_tensors(case.shape, dtype, device, seed)

    def run(self, tensors, arguments, gradients=None):
        return util.results(type(self).op, tensors, arguments, gradients)

    def twin(self, tensors, arguments, gradients):
        """Results of the reference; what it does not use has zero gradients."""

        def used(**leaves):
            output, extra = type(self).reference(**leaves)
            nothing = sum(
                0 * x.nan_to_num(posinf=0, neginf=0).sum()
                for x in leaves.values()
                if torch.is_tensor(x) and x.requires_grad
            )
            return output, extra + nothing.to(extra.dtype)

        return util.results(used, tensors, arguments, gradients)

    def gradients(self, tensors, arguments):
        with torch.no_grad():
            return util.output_gradients(*type(self).op(**tensors, **arguments))

    def inside(self, case, device):
        """Which tokens belong to a row, [B, L]."""
        return case.rows(device)[0] >= 0

    @property
    def with_tokens(self):
        """Arguments with an axis of tokens, the third."""
        return self.per_token + self.lines

    def token_results(self, found):
        """The names of results and gradients with an axis of tokens."""
        names = [f"grad_{name}" for name in self.with_tokens if f"grad_{name}" in found]
        return names + list(self.token_outputs)

    def per_result(self, gradients):
        """Gradients of the results, and whether each has an axis of tokens."""
        names = ("output", "lse")
        return [
            (x, name in self.token_outputs)
            for x, name in zip(gradients, names, strict=True)
        ]

    @pytest.mark.parametrize("dtype", util.DTYPES, ids=str)
    def test_parity(self, case, dtype, device):
        tensors, arguments = self.tensors(case, dtype, device), case.arguments(device)
        gradients = self.gradients(tensors, arguments)
        actual = self.run(tensors, arguments, gradients)
        same = self.twin(tensors, arguments, gradients)
        exact = self.twin(
            {name: x.double() for name, x in tensors.items()},
            arguments,
            tuple(x.double() for x in gradients),
        )
        for name, result in actual.items():
            assert result.dtype == same[name].dtype, name
            assert result.isfinite().all() or name == "lse", name
        units = 16 * self.units if dtype == torch.float64 else self.units
        util.assert_as_exact_as(actual, same, exact, units)

    def test_gradcheck(self, small_case, device):
        arguments = small_case.arguments(device)
        tensors = self.tensors(small_case, device=device)
        names = list(tensors)

        def outputs(*values):
            leaves = dict(zip(names, values, strict=True))
            output, extra = type(self).op(**leaves, **arguments)
            return output, torch.where(extra.isfinite(), extra, 0)

        leaves = [x.requires_grad_() for x in tensors.values()]
        assert torch.autograd.gradcheck(outputs, leaves, fast_mode=True)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    def test_outside_is_not_read(self, case, dtype, device):
        tensors, arguments = self.tensors(case, dtype, device), case.arguments(device)
        gradients = self.gradients(tensors, arguments)
        clean = self.run(tensors, arguments, gradients)
        outside = ~self.inside(case, device)
        for name in self.token_results(clean):
            assert not clean[name].transpose(1, 2)[outside].any(), name
        for poison in (math.nan, math.inf, -math.inf):
            worse = {name: x.clone() for name, x in tensors.items()}
            for name in worse.keys() & set(self.with_tokens):
                worse[name].transpose(1, 2)[outside] = poison
            worse_gradients = tuple(x.clone() for x in gradients)
            for x, has_tokens in self.per_result(worse_gradients):
                if has_tokens:
                    x.transpose(1, 2)[outside] = poison
            found = self.run(worse, arguments, worse_gradients)
            for name, result in found.items():
                util.assert_same_bits(result, clean[name], name=name)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    def test_rows_alone(self, case, dtype, device):
        """A row's results do not depend on the others, nor on where it lies."""
        tensors, arguments = self.tensors(case, dtype, device), case.arguments(device)
        gradients = self.gradients(tensors, arguments)
        whole = self.run(tensors, arguments, gradients)
        row, rank = case.rows(device)
        own = {k: v for k, v in arguments.items() if k not in ROW_OPTIONS}
        rows = case.lead[0]
        if "cu_seqlens" in arguments:
            rows = arguments["cu_seqlens"].numel() - 1
        for r in range(rows):
            b = min(r, row.shape[0] - 1)
            token = (row[b] == r).nonzero().squeeze(1)
            token = token[rank[b, token].argsort()]
            alone = {}
            for name, x in tensors.items():
                if name in self.with_tokens:
                    x = x[b : b + 1, :, token]
                elif name not in self.shared:
                    x = x[r : r + 1]
                alone[name] = x
            parts = tuple(
                x[b : b + 1, :, token] if has_tokens else x[r : r + 1]
                for x, has_tokens in self.per_result(gradients)
            )
            found = self.run(alone, own, parts)
            for name, result in found.items():
                if name.removeprefix("grad_") in self.shared:
                    continue
                expected = whole[name]
                if name in self.token_results(found):
                    expected = expected[b : b + 1, :, token]
                else:
                    expected = expected[r : r + 1]
                util.assert_same_bits(result, expected, name=name)

    shared: ClassVar[tuple[str, ...]] = ()

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    def test_strides(self, case, dtype, device):
        tensors, arguments = self.tensors(case, dtype, device), case.arguments(device)
        gradients = self.gradients(tensors, arguments)
        expected = self.run(tensors, arguments, gradients)
        views = {name: list(layouts(tensors[name])) for name in self.per_token}
        grads = [x for _, x in layouts(gradients[0])]
        for i, grad in enumerate(grads):
            strided = {**tensors, **{name: v[i][1] for name, v in views.items()}}
            actual = self.run(strided, arguments, (grad, gradients[1]))
            for name, result in actual.items():
                util.assert_same_bits(result, expected[name], name=name)
            order = [(2, 0, 1, 3), (0, 2, 1, 3)]  # of the first two layouts
            for name in self.per_token if i < len(order) else ():
                assert actual[f"grad_{name}"].permute(order[i]).is_contiguous(), name

    def test_gradient_of_stride_zero(self, case, device):
        tensors = self.tensors(case, torch.float32, device)
        arguments = case.arguments(device)
        with torch.no_grad():
            results = type(self).op(**tensors, **arguments)
        one = torch.ones((), device=device)
        expanded = tuple(one.expand(x.shape) for x in results)
        dense = tuple(x.contiguous() for x in expanded)
        expected = self.run(tensors, arguments, dense)
        for name, result in self.run(tensors, arguments, expanded).items():
            util.assert_same_bits(result, expected[name], name=name)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    def test_deterministic(self, large_case, dtype, device):
        """Two runs, and runs of other numbers of threads, give the same bits."""
        tensors = self.tensors(large_case, dtype, device)
        arguments = large_case.arguments(device)
        gradients = self.gradients(tensors, arguments)
        threads = torch.get_num_threads()
        try:
            runs = []
            for count in (1, 2, 2, 3):
                torch.set_num_threads(count)
                runs.append(self.run(tensors, arguments, gradients))
        finally:
            torch.set_num_threads(threads)
        for run in runs[1:]:
            for name, result in run.items():
                util.assert_same_bits(result, runs[0][name], name=name)

    def test_unwritten_memory(self, case, device):
        """``at::empty`` filled with NaN changes no bit: everything is written."""
        tensors = self.tensors(case, torch.float32, device)
        arguments = case.arguments(device)
        gradients = self.gradients(tensors, arguments)
        expected = self.run(tensors, arguments, gradients)
        torch.use_deterministic_algorithms(True)
        try:
            actual = self.run(tensors, arguments, gradients)
        finally:
            torch.use_deterministic_algorithms(False)
        for name, result in actual.items():
            util.assert_same_bits(result, expected[name], name=name)

    def test_one_gradient_at_a_time(self, case, device):
        """A gradient is the same whichever others are wanted."""
        tensors = self.tensors(case, torch.float32, device)
        arguments = case.arguments(device)
        expected = self.run(tensors, arguments)
        for name in tensors:
            leaf = tensors[name].detach().requires_grad_()
            results = type(self).op(**{**tensors, name: leaf}, **arguments)
            gradients = util.output_gradients(*results)
            (grad,) = torch.autograd.grad(results, leaf, gradients)
            util.assert_same_bits(grad, expected[f"grad_{name}"], name=name)

    def test_gradient_of_one_result(self, case, device):
        tensors, arguments = self.tensors(case, device=device), case.arguments(device)
        gradients = self.gradients(tensors, arguments)
        leaves = {k: v.requires_grad_() for k, v in tensors.items()}
        results = type(self).op(**leaves, **arguments)
        for i, gradient in enumerate(gradients):
            zeros = [torch.zeros_like(x) for x in gradients]
            zeros[i] = gradient
            expected = self.run(tensors, arguments, tuple(zeros))
            grads = torch.autograd.grad(
                results[i], list(leaves.values()), gradient, retain_graph=True
            )
            for name, grad in zip(leaves, grads, strict=True):
                torch.testing.assert_close(grad, expected[f"grad_{name}"], msg=name)

    def test_opcheck(self, case, device):
        tensors = self.tensors(case, torch.float32, device)
        tensors = {k: v.requires_grad_() for k, v in tensors.items()}
        arguments = case.arguments(device)
        for name in self.public:
            op = getattr(torch.ops.subquad, name).default
            given = {**tensors, **arguments}
            positional = [
                given.pop(a.name) for a in op._schema.arguments if not a.kwarg_only
            ]
            torch.library.opcheck(op, tuple(positional), given)

    def test_opcheck_private(self, case, device):
        name = self.public[0]
        arguments = case.arguments(device)
        tensors = self.tensors(case, torch.float32, device)
        given = {**tensors, **arguments}
        given["packed"] = "cu_seqlens" in arguments
        given["spans"] = None
        if given["packed"]:
            cu = arguments["cu_seqlens"]
            given["spans"] = torch.stack([cu[:-1], cu.diff()], 1)
        elif "lengths" in arguments:
            lengths = arguments["lengths"]
            starts = arguments.get("starts", torch.zeros_like(lengths))
            given["spans"] = torch.stack([starts, lengths], 1)
        public = getattr(torch.ops.subquad, name).default._schema.arguments
        defaults = {a.name: a.default_value for a in public}
        if given.get("scale") is None:
            given["scale"] = case.lead[-1] ** -0.25
        forward = getattr(torch.ops.subquad, f"_{name}_forward").default
        inputs = [
            given.get(a.name, defaults.get(a.name)) for a in forward._schema.arguments
        ]
        torch.library.opcheck(forward, inputs)
        results = forward(*inputs)
        expected = type(self).op(**tensors, **arguments)
        for actual, wanted in zip(results, expected, strict=True):
            util.assert_same_bits(actual, wanted)
        backward = getattr(torch.ops.subquad, f"_{name}_backward").default
        saved = {"output": results[0], "lse": results[1], "log_scale": results[1]}
        grads = dict(
            zip(
                ("grad_output", "grad_lse")
                if name == "sequence_pool"
                else ("grad_features", "grad_log_scale"),
                util.output_gradients(*results),
                strict=True,
            )
        )
        known = dict(
            zip([a.name for a in forward._schema.arguments], inputs, strict=True)
        )
        schema = backward._schema.arguments
        mask = [x in given for x in ("input", "projection", "initial_log_scale")]
        known["output_mask"] = [True, True] if name == "sequence_pool" else mask
        torch.library.opcheck(
            backward, [{**saved, **grads, **known}[a.name] for a in schema]
        )

    def test_one_compilation_for_all_lengths(self, device):
        torch.compiler.reset()
        counters.clear()
        op = type(self).op
        compiled = torch.compile(op, fullgraph=True, dynamic=True)
        for L in (37, 53, 64, 101):
            case = self.case_of_length(L)
            tensors = self.tensors(case, torch.float32, device)
            arguments = case.arguments(device)
            expected = self.run(tensors, arguments)
            actual = util.results(compiled, tensors, arguments)
            for name, result in actual.items():
                util.assert_same_bits(result, expected[name], name=name)
            assert counters["stats"]["unique_graphs"] == 1

    def test_compile(self, case, device):
        torch.compiler.reset()
        compiled = torch.compile(type(self).op, fullgraph=True, backend="aot_eager")
        tensors = self.tensors(case, torch.float32, device)
        arguments = case.arguments(device)
        expected = self.run(tensors, arguments)
        for name, result in util.results(compiled, tensors, arguments).items():
            util.assert_same_bits(result, expected[name], name=name)

    def test_script(self, case, device):
        buffer = io.BytesIO()
        torch.jit.save(torch.jit.script(self.module()), buffer)
        buffer.seek(0)
        loaded = torch.jit.load(buffer)
        tensors = self.tensors(case, torch.float32, device)
        arguments = case.arguments(device)
        names = {a.name for a in loaded.forward.schema.arguments}
        if not arguments.keys() <= names:
            pytest.skip("an option that the module does not have")
        expected = self.module()(**tensors, **arguments)
        actual = loaded(**tensors, **arguments)
        for result, wanted in zip(actual, expected, strict=True):
            util.assert_same_bits(result, wanted)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
    def test_autocast(self, case, dtype, device):
        tensors = self.tensors(case, torch.float32, device)
        arguments = case.arguments(device)
        with torch.autocast(device, dtype):
            actual = type(self).op(**tensors, **arguments)
        low = {k: v.to(dtype) for k, v in tensors.items() if v.dim() > 2}
        expected = type(self).op(**{**tensors, **low}, **arguments)
        for result, wanted in zip(actual, expected, strict=True):
            assert result.dtype == wanted.dtype
            util.assert_same_bits(result, wanted)

    def test_double_backward_is_refused(self, case, device):
        tensors = self.tensors(case, torch.float32, device)
        leaves = {k: v.requires_grad_() for k, v in tensors.items()}
        results = type(self).op(**leaves, **case.arguments(device))
        grads = torch.autograd.grad(
            results[0].square().sum(), list(leaves.values()), create_graph=True
        )
        with pytest.raises(RuntimeError, match=r"derivative for .* is not implemented"):
            torch.autograd.grad(grads[0].sum(), list(leaves.values()))

    def test_meta(self, case, device):
        """Shapes, dtypes and strides without data."""
        tensors = self.tensors(case, torch.float32, device)
        arguments = case.arguments(device)
        expected = type(self).op(**tensors, **arguments)
        given = {**tensors, **arguments}
        meta = {k: v.to("meta") if torch.is_tensor(v) else v for k, v in given.items()}
        for result, wanted in zip(type(self).op(**meta), expected, strict=True):
            assert result.device.type == "meta"
            assert result.dtype == wanted.dtype
            assert result.stride() == wanted.stride()
            assert result.shape == wanted.shape

    def check_error(self, spoiled, exception, text, device):
        """The same text from the device and from Meta."""
        case = self.case_of_length(7)
        given = {**self.tensors(case, torch.float32), **case.arguments(), **spoiled}
        given = {k: v for k, v in given.items() if v is not None}
        for where in (device, "meta"):
            placed = {
                k: v.to(where) if torch.is_tensor(v) else v for k, v in given.items()
            }
            with pytest.raises(exception, match=f"^{self.public[0]}: {text}"):
                type(self).op(**placed)
