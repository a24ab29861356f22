"""Merging of attention over disjoint keys."""

import math

import pytest
import torch

from subquad import functional, reference
from tests import util


def parts(dtype, device, B=2, H=2, L=17, M=5):
    shape = {"output_a": (B, H, L, M), "lse_a": (B, H, L)}
    shape |= {"output_b": (B, H, L, M), "lse_b": (B, H, L)}
    tensors = util.random_tensors(shape, dtype, device)
    for name in ("lse_a", "lse_b"):
        if dtype != torch.float64:
            tensors[name] = tensors[name].float()
    # Sides that saw nothing, as window attention gives them.
    for name, sides in {"a": (1, 3), "b": (2, 3)}.items():
        for i in sides:
            tensors[f"output_{name}"][:, :, i] = 0
            tensors[f"lse_{name}"][:, :, i] = -math.inf
    return tensors


@pytest.mark.parametrize("dtype", util.DTYPES, ids=str)
def test_parity(dtype, device):
    tensors = parts(dtype, device)
    gradients = util.output_gradients(tensors["output_a"], tensors["lse_a"])
    actual = util.results(functional.merge_attention, tensors, {}, gradients)
    same = util.results(reference.merge_attention, tensors, {}, gradients)
    exact = util.results(
        reference.merge_attention,
        {name: x.double() for name, x in tensors.items()},
        {},
        tuple(x.double() for x in gradients),
    )
    for name, result in actual.items():
        assert result.dtype == same[name].dtype, name
    util.assert_as_exact_as(actual, same, exact, units=8)


def test_gradcheck(device):
    tensors = parts(torch.float64, device, L=5)

    def outputs(*values):
        output, lse = functional.merge_attention(*values)
        return output, torch.where(lse.isfinite(), lse, 0)

    # A side without keys has no neighbourhood: gradcheck the others.
    values = [x[:, :, [0, 4]].detach().requires_grad_() for x in tensors.values()]
    assert torch.autograd.gradcheck(outputs, values)


def test_empty_sides(device):
    tensors = parts(torch.float32, device)
    output, lse = functional.merge_attention(**tensors)
    for empty, other in ((1, "b"), (2, "a")):
        for actual, name in ((output, "output"), (lse, "lse")):
            expected = tensors[f"{name}_{other}"][:, :, empty]
            torch.testing.assert_close(actual[:, :, empty], expected)
    assert not output[:, :, 3].any()
    assert (lse[:, :, 3] == -math.inf).all()
    found = util.results(functional.merge_attention, tensors, {})
    for name in ("grad_output_a", "grad_output_b", "grad_lse_a", "grad_lse_b"):
        assert found[name].isfinite().all(), name
        assert not found[name][:, :, 3].any(), name


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_merged_parts_equal_the_whole(dtype, device):
    """Windows over early and late keys, merged, are the window over all."""
    shape = {name: (2, 2, 17, 8) for name in ("query", "key", "value")}
    tensors = util.random_tensors(shape, dtype, device)
    op = functional.window_attention_with_lse

    early = torch.tensor([6, 0], device=device)
    # Positions of queries when the first late key is at 0.
    position = torch.arange(17, device=device) - early[:, None]
    everything = {"block": 1, "left": 20, "right": 20}

    def merged(query, key, value):
        a = op(query, key, value, **everything, lengths=early)
        b = op(
            query,
            key,
            value,
            **everything,
            starts=early,
            lengths=17 - early,
            query_position=position,
        )
        return functional.merge_attention(*a, *b)

    def full(query, key, value):
        return op(query, key, value, **everything)

    actual = util.results(merged, tensors, {})
    expected = util.results(full, tensors, {})
    for name, result in actual.items():
        torch.testing.assert_close(result, expected[name], msg=name)


def test_opcheck_compile_script(device):
    tensors = {k: v.requires_grad_() for k, v in parts(torch.float32, device).items()}
    op = torch.ops.subquad.merge_attention.default
    torch.library.opcheck(op, tuple(tensors.values()))
    expected = functional.merge_attention(**tensors)
    for other in (
        torch.compile(functional.merge_attention, fullgraph=True),
        torch.jit.script(functional.merge_attention),
    ):
        for actual, wanted in zip(other(**tensors), expected, strict=True):
            torch.testing.assert_close(actual, wanted)


def test_no_entries(device):
    for L in (0, 1):
        tensors = util.random_tensors(
            {
                "output_a": (1, 2, L, 4),
                "lse_a": (1, 2, L),
                "output_b": (1, 2, L, 4),
                "lse_b": (1, 2, L),
            },
            torch.float32,
            device,
        )
        assert functional.merge_attention(**tensors)[0].shape == (1, 2, L, 4)


@pytest.mark.parametrize(
    ("spoiled", "exception"),
    [
        ({"output_b": (2, 2, 17, 6)}, ValueError),
        ({"output_a": (2, 17, 5)}, ValueError),
        ({"lse_a": (2, 2, 16)}, ValueError),
        ({"lse_b": (2, 17)}, ValueError),
        ({"output_b": torch.float64}, TypeError),
        ({"lse_b": torch.float64}, TypeError),
    ],
    ids=str,
)
def test_errors(spoiled, exception, device):
    tensors = parts(torch.float32, device)
    for name, change in spoiled.items():
        if isinstance(change, tuple):
            tensors[name] = torch.zeros(change, device=device)
        else:
            tensors[name] = tensors[name].to(change)
    texts = set()
    for where in (device, "meta"):
        with pytest.raises(exception, match=r"^merge_attention: .*, got ") as raised:
            functional.merge_attention(**{k: v.to(where) for k, v in tensors.items()})
        texts.add(str(raised.value).splitlines()[0])
    assert len(texts) == 1


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_side_that_saw_nothing_is_not_read(poison, device):
    tensors = parts(torch.float32, device)
    gradients = util.output_gradients(tensors["output_a"], tensors["lse_a"])
    clean = util.results(functional.merge_attention, tensors, {}, gradients)
    for side in ("a", "b"):
        empty = tensors[f"lse_{side}"] == -math.inf
        tensors[f"output_{side}"][empty] = poison
    # No keys at all: nothing to pass a gradient to.
    for gradient in gradients:
        gradient[:, :, 3] = poison
    found = util.results(functional.merge_attention, tensors, {}, gradients)
    for name, result in found.items():
        util.assert_same_bits(result, clean[name], name=name)
    twin = util.results(reference.merge_attention, tensors, {}, gradients)
    torch.testing.assert_close(found["output"], twin["output"])


@pytest.mark.parametrize("dtype", util.DTYPES, ids=str)
@pytest.mark.parametrize("M", [1, 5, 16, 67])
def test_strides(dtype, M, device):
    tensors = parts(dtype, device, M=M)
    gradients = (
        torch.ones((), device=device, dtype=dtype).expand(2, 2, 17, M),
        torch.ones((), device=device, dtype=tensors["lse_a"].dtype).expand(2, 2, 17),
    )
    dense = tuple(x.contiguous() for x in gradients)
    expected = util.results(functional.merge_attention, tensors, {}, dense)
    strided = {
        "output_a": tensors["output_a"].permute(2, 0, 1, 3).contiguous(),
        "lse_a": tensors["lse_a"].permute(2, 0, 1).contiguous(),
        "output_b": torch.cat([tensors["output_b"]] * 2, 3)[..., M:],
        "lse_b": torch.stack([tensors["lse_b"]] * 2, 3)[..., 1],
    }
    for name in ("output_a", "lse_a"):
        axes = range(3, strided[name].dim())
        strided[name] = strided[name].permute(1, 2, 0, *axes)
    actual = util.results(functional.merge_attention, strided, {}, gradients)
    for name, result in actual.items():
        util.assert_same_bits(result, expected[name], name=name)
    # The axes lie in the order of those of output_a.
    assert actual["output"].permute(2, 0, 1, 3).is_contiguous()


@pytest.mark.parametrize(
    ("name", "result"),
    [
        ("output_a", 0),
        ("output_b", 0),
        ("lse_a", 0),
        ("lse_b", 0),
        ("lse_a", 1),
        ("lse_b", 1),
    ],
)
def test_one_gradient_at_a_time(name, result, device):
    tensors = parts(torch.float64, device)
    x = tensors[name].requires_grad_()
    outcomes = functional.merge_attention(**tensors)
    twins = reference.merge_attention(**tensors)
    seen = [torch.where(y.isfinite(), y, 0).square().sum() for y in outcomes]
    wanted = [torch.where(y.isfinite(), y, 0).square().sum() for y in twins]
    (grad,) = torch.autograd.grad(seen[result], x)
    (expected,) = torch.autograd.grad(wanted[result], x)
    torch.testing.assert_close(grad, expected)


def test_autocast_keeps_the_dtype(device):
    tensors = parts(torch.float32, device)
    expected = functional.merge_attention(**tensors)
    with torch.autocast(device, torch.bfloat16):
        actual = functional.merge_attention(**tensors)
        low = {**tensors, "output_b": tensors["output_b"].bfloat16()}
        mixed = functional.merge_attention(**low)
    for a, b in zip(actual, expected, strict=True):
        util.assert_same_bits(a, b)
    low["output_b"] = low["output_b"].float()
    for a, b in zip(mixed, functional.merge_attention(**low), strict=True):
        util.assert_same_bits(a, b)


def test_errors_name_what_they_found(device):
    tensors = parts(torch.float32, device)
    for change, error, text in (
        (
            {"output_b": tensors["output_b"].double()},
            TypeError,
            "output_b must have the dtype of output_a, Float, got Double",
        ),
        (
            {"output_b": tensors["output_b"][:1]},
            ValueError,
            "axis 0 of output_b must be B = 2, got 1",
        ),
        (
            {"lse_b": tensors["lse_b"].bfloat16()},
            TypeError,
            "lse_b must be Float where output_a is Float, got BFloat16",
        ),
        (
            {"output_a": tensors["output_a"].transpose(2, 3).mT[..., ::2]},
            ValueError,
            "axis 3 of output_b must be M = 3, got 5",
        ),
    ):
        with pytest.raises(error, match="^merge_attention: " + text):
            functional.merge_attention(**{**tensors, **change})
    wide = {name: x.repeat_interleave(2, -1) for name, x in tensors.items()}
    skipped = {name: x[..., ::2] for name, x in wide.items()}
    text = "the last axis of output_a must be dense"
    with pytest.raises(ValueError, match="^merge_attention: " + text):
        functional.merge_attention(**skipped)
