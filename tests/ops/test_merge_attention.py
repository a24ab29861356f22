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
