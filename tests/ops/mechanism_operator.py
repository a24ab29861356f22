"""What operators that compose linear attention have in common, as a base of tests."""

import math
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from torch._dynamo.utils import counters

from tests import util

B, H, HKV, L, S, D, M = 2, 4, 2, 17, 12, 6, 5

# Rows by the tests' names: of self-attention, then of queries and keys.
ROWS: dict[str, dict[str, Any]] = {
    "whole": {},
    "lengths": {"lengths": [17, 5]},
    "lengths-zero": {"lengths": [0, 9]},
    "starts": {"starts": [3, 0], "lengths": [12, 6]},
    "order": {
        "lengths": [7, 16],
        "order": [
            [16, 3, 4, 0, 9, 2, 11, 1, 5, 6, 7, 8, 10, 12, 13, 14, 15],
            [*range(1, 17), 0],
        ],
    },
    "packed": {"cu_seqlens": [0, 6, 6, 7, 17]},
    "packed-gaps": {"cu_seqlens": [2, 6, 15]},
}
CROSS_ROWS: dict[str, dict[str, Any]] = {
    "cross": {},
    "cross-lengths": {"lengths": [12, 5], "query_lengths": [3, 17]},
    "cross-starts": {
        "starts": [3, 0],
        "lengths": [2, 6],
        "query_starts": [1, 2],
        "query_lengths": [16, 0],
    },
    "cross-keys": {"lengths": [0, 5]},
    "cross-queries": {"query_lengths": [0, 5]},
    "cross-packed": {"cu_seqlens": [0, 6, 12], "query_cu_seqlens": [0, 3, 17]},
}
INDICES = {*CROSS_ROWS["cross-starts"], "order", "query_order", "cu_seqlens"}
INDICES |= {"query_cu_seqlens", "query_position", "key_position"}
TOKENS = ("query", "key", "value")


def batch_of(options):
    return 1 if "cu_seqlens" in options else B


class MechanismOperator:
    """Tests of ``op`` and ``op_with_state`` against ``reference``.

    Attributes:
        public: Names of the two operators.
        op: Without a state.
        op_with_state: With one.
        reference: The definition with a state.
        own: Options of the mechanism, by name of a test.
        continuing: Those with which a sequence can be continued.
        dtypes: In which the reference can be computed.
    """

    public: ClassVar[tuple[str, str]]
    op: ClassVar[Callable[..., Any]]
    op_with_state: ClassVar[Callable[..., Any]]
    reference: ClassVar[Callable[..., Any]]
    own: ClassVar[dict[str, dict[str, Any]]]
    continuing: ClassVar[tuple[str, ...]]
    dtypes: ClassVar[tuple[torch.dtype, ...]] = tuple(util.DTYPES)

    def more(self, dtype, device):
        """Further tensors with a gradient."""
        return {}

    def tensors(self, options, dtype=torch.float64, device="cpu", L=L, S=None):
        """Differentiable arguments; as many keys as queries without S."""
        batch, S = batch_of(options), L if S is None else S
        shape = {
            "query": (batch, H, L, D),
            "key": (batch, HKV, S, D),
            "value": (batch, HKV, S, M),
        }
        tensors = util.random_tensors(shape, dtype, device)
        return tensors | self.more(dtype, device)

    def arguments(self, options, device="cpu"):
        return {
            name: torch.tensor(option, device=device) if name in INDICES else option
            for name, option in options.items()
        }

    def results(self, function, tensors, arguments):
        """Output and gradients, by name."""
        leaves = {k: v.detach().requires_grad_() for k, v in tensors.items()}
        output = function(**leaves, **arguments)
        output = output[0] if isinstance(output, tuple) else output
        grad = util.random_tensors({"x": tuple(output.shape)}, torch.float64, "cpu", 9)
        grad = grad["x"].to(output)
        grads = torch.autograd.grad(output, list(leaves.values()), grad)
        named = {f"grad_{k}": g for k, g in zip(leaves, grads, strict=True)}
        return {"output": output.detach(), **named}

    def cases(self):
        """Every option of the mechanism with every kind of rows."""
        for own in self.own.values():
            for rows in ROWS.values():
                for causal in (False, True):
                    yield {**own, **rows, "causal": causal}, None
            for rows in CROSS_ROWS.values():
                yield {**own, **rows}, S

    def test_definition(self, device):
        for options, keys in self.cases():
            arguments = self.arguments(options, device)
            tensors = self.tensors(options, device=device, S=keys)
            actual = self.results(type(self).op, tensors, arguments)
            exact = self.results(type(self).reference, tensors, arguments)
            for name, result in actual.items():
                torch.testing.assert_close(
                    result, exact[name], rtol=1e-9, atol=1e-9, msg=f"{name} {options}"
                )

    @pytest.mark.parametrize("causal", [False, True])
    @pytest.mark.parametrize("dtype", util.DTYPES[1:], ids=str)
    def test_parity(self, dtype, causal, device):
        if dtype not in self.dtypes:
            pytest.skip("the floor of the reference is nothing in this dtype")
        for own in self.own.values():
            options = {**own, "causal": causal}
            tensors = self.tensors(options, dtype, device, L=150)
            actual = self.results(type(self).op, tensors, options)
            same = self.results(type(self).reference, tensors, options)
            wide = {name: x.double() for name, x in tensors.items()}
            exact = self.results(type(self).reference, wide, options)
            # Two operators' roundings, and denominators that come near their floor.
            util.assert_as_exact_as(actual, same, exact, units=64)

    def test_gradcheck(self, device):
        tensors = self.tensors({}, device=device, L=5)
        names = list(tensors)
        for own in self.own.values():
            for causal in (False, True):
                assert torch.autograd.gradcheck(
                    lambda *values, options=own, causal=causal: type(self).op(
                        **dict(zip(names, values, strict=True)),
                        **options,
                        causal=causal,
                    ),
                    [x.requires_grad_() for x in tensors.values()],
                    fast_mode=True,
                )

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    def test_nothing_comes_from_the_future(self, dtype, device):
        """NaN and Inf behind a cut change no bit before it."""
        length = 64 * 4 + 7
        for own in self.own.values():
            tensors = self.tensors(own, dtype, device, L=length)
            expected = type(self).op(**tensors, **own, causal=True)
            for cut in range(64, length, 64):
                for poison in (math.nan, math.inf, -math.inf):
                    worse = {k: v.clone() for k, v in tensors.items()}
                    for name in TOKENS:
                        worse[name][:, :, cut:] = poison
                    output = type(self).op(**worse, **own, causal=True)
                    util.assert_same_bits(output[:, :, :cut], expected[:, :, :cut])

    @pytest.mark.parametrize("poison", [math.nan, math.inf])
    def test_outside_is_not_read(self, poison, device):
        options = {"starts": [3, 0], "lengths": [12, 6]}
        arguments = self.arguments(options, device)
        inside = torch.arange(L, device=device)[None]
        start, length = arguments["starts"][:, None], arguments["lengths"][:, None]
        outside = (inside < start) | (inside >= start + length)
        for own in self.own.values():
            given = {**arguments, **own, "causal": True}
            tensors = self.tensors(options, torch.float32, device)
            clean = self.results(type(self).op, tensors, given)
            assert not clean["output"].transpose(1, 2)[outside].any()
            for name in TOKENS:
                assert not clean[f"grad_{name}"].transpose(1, 2)[outside].any()
                tensors[name].transpose(1, 2)[outside] = poison
            for name, result in self.results(type(self).op, tensors, given).items():
                util.assert_same_bits(result, clean[name], name=name)

    @pytest.mark.parametrize("rows", ["whole", "packed"])
    def test_pieces_equal_the_whole(self, rows, device):
        for name in self.continuing:
            options = {**self.own[name], **ROWS[rows]}
            tensors = self.tensors(options, device=device)
            if rows == "packed":
                self.check_packed_pieces(options, tensors, device)
                continue
            expected = type(self).op(**tensors, **options, causal=True)
            outputs, state, begin = [], {}, 0
            for count in (1, 4, 1, 11):
                piece = {
                    k: v[:, :, begin : begin + count] if k in TOKENS else v
                    for k, v in tensors.items()
                }
                place = self.place(begin, count, device)
                output, *sums = type(self).op_with_state(
                    **piece, **options, **state, **place, causal=True
                )
                state = self.next_state(sums)
                outputs.append(output)
                begin += count
            torch.testing.assert_close(torch.cat(outputs, 2), expected)

    def check_packed_pieces(self, options, tensors, device):
        """The state of packed rows is that of each."""
        arguments = self.arguments(options, device)
        _, *sums = type(self).op_with_state(**tensors, **arguments, causal=True)
        cu = options["cu_seqlens"]
        del arguments["cu_seqlens"]
        for r in range(len(cu) - 1):
            row = {
                k: v[:, :, cu[r] : cu[r + 1]] if k in TOKENS else v
                for k, v in tensors.items()
            }
            _, *alone = type(self).op_with_state(**row, **arguments, causal=True)
            for one, other in zip(sums, alone, strict=True):
                if one.numel() and cu[r + 1] > cu[r]:
                    torch.testing.assert_close(one[r : r + 1], other)

    def place(self, begin, count, device):
        """What a piece needs to know of its place."""
        return {}

    def next_state(self, sums):
        names = ("state_kv", "state_k", "state_log_scale")
        return {k: v for k, v in zip(names, sums, strict=False) if v.numel()}

    def test_state_dtype(self, device):
        for dtype in util.DTYPES:
            tensors = self.tensors({}, dtype, device)
            wide = torch.float64 if dtype == torch.float64 else torch.float32
            output, *sums = type(self).op_with_state(**tensors)
            assert output.dtype == dtype
            assert {x.dtype for x in sums if x.numel()} == {wide}

    def test_layouts(self, device):
        """[L, B, H * D] projections are read in place and written likewise."""
        tensors = self.tensors({}, torch.float32, device)
        expected = type(self).op(**tensors, causal=True)
        for order in ((2, 0, 1, 3), (0, 2, 1, 3)):
            back = [order.index(axis) for axis in range(4)]
            moved = {
                k: v.permute(order).contiguous().permute(back) if k in TOKENS else v
                for k, v in tensors.items()
            }
            output = type(self).op(**moved, causal=True)
            util.assert_same_bits(output, expected)
            assert output.permute(order).is_contiguous()

    def test_large_numbers_and_many_tokens(self, device):
        """Norms of 50 and 64k tokens overflow nothing in float16."""
        for own in self.own.values():
            shape = {name: (1, 1, 65536, 16) for name in TOKENS}
            tensors = util.random_tensors(shape, torch.float32, device)
            for name in ("query", "key"):
                norm = tensors[name].norm(dim=-1, keepdim=True)
                tensors[name] = tensors[name] * 50 / norm
            tensors |= self.more(torch.float32, device, heads=1, width=16)
            leaves = {k: v.half().requires_grad_() for k, v in tensors.items()}
            options = {k: v for k, v in own.items() if k != "max_length"}
            for causal in (False, True):
                output = type(self).op(**leaves, **options, causal=causal)
                assert output.isfinite().all()
                grads = torch.autograd.grad(output.float().mean(), [*leaves.values()])
                assert all(grad.isfinite().all() for grad in grads)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
    def test_autocast(self, dtype, device):
        tensors = self.tensors({}, torch.float32, device)
        with torch.autocast(device, dtype):
            output = type(self).op(**tensors, causal=True)
        assert output.dtype == dtype
        low = {name: x.to(dtype) for name, x in tensors.items()}
        util.assert_same_bits(output, type(self).op(**low, causal=True))

    def test_opcheck(self, device):
        for options, keys in (({"causal": True}, None), (CROSS_ROWS["cross-keys"], S)):
            tensors = self.tensors(options, torch.float32, device, S=keys)
            given = {k: v.requires_grad_() for k, v in tensors.items()}
            given |= self.arguments(options, device)
            for name in self.public:
                op = getattr(torch.ops.subquad, name).default
                names = [a.name for a in op._schema.arguments if not a.kwarg_only]
                rest = {k: v for k, v in given.items() if k not in names}
                torch.library.opcheck(op, [given[k] for k in names], rest)

    @pytest.mark.parametrize("rows", ["whole", "lengths", "order"])
    def test_one_compilation_for_all_lengths(self, rows, device):
        torch.compiler.reset()
        counters.clear()
        compiled = torch.compile(
            type(self).op, fullgraph=True, dynamic=True, backend="aot_eager"
        )
        for length in (37, 53, 64, 101):
            arguments = {"causal": True}
            if rows != "whole":
                arguments["lengths"] = torch.tensor([length, 9], device=device)
            if rows == "order":
                order = torch.arange(length, device=device).flip(0)
                arguments["order"] = order.expand(2, -1)
            tensors = self.tensors({}, torch.float32, device, L=length)
            expected = self.results(type(self).op, tensors, arguments)
            actual = self.results(compiled, tensors, arguments)
            for name, result in actual.items():
                torch.testing.assert_close(result, expected[name], msg=name)
        assert counters["stats"]["unique_graphs"] == 1

    def test_script(self, device):
        tensors = self.tensors({}, torch.float32, device)
        scripted = torch.jit.script(type(self).op_with_state)
        actual = scripted(**tensors, causal=True)
        expected = type(self).op_with_state(**tensors, causal=True)
        for one, other in zip(actual, expected, strict=True):
            util.assert_same_bits(one, other)

    def test_empty(self, device):
        for length, keys in ((0, 5), (5, 0), (0, 0)):
            tensors = self.tensors({}, torch.float32, device, L=length, S=keys)
            found = self.results(type(self).op, tensors, {})
            assert found["output"].shape == (B, H, length, M)
            assert not found["output"].any()
            assert not any(found[f"grad_{name}"].any() for name in TOKENS)
