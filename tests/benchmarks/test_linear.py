import pytest
import torch

from subquad import reference
from subquad.benchmarks import linear

LENGTHS = (1, 7, 64, 67, 200)


def tokens(*shape):
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("kind", ["noncausal", "causal", "scaled"])
def test_plain_attention_equals_the_definition(kind, length):
    q, k = (tokens(2, 3, length, 8).abs().requires_grad_() for _ in range(2))
    v = tokens(2, 3, length, 5).requires_grad_()
    leaves, options = [q, k, v], {"causal": kind != "noncausal"}
    if kind == "noncausal":
        output = linear.noncausal(q, k, v)
    elif kind == "causal":
        output = linear.causal(q, k, v)
    else:
        m = (3 * tokens(2, 3, length)).cummax(-1).values.requires_grad_()
        output, leaves = linear.causal(q, k, v, m), [*leaves, m]
        options["key_log_scale"] = m
    expected = reference.linear_attention(q, k, v, **options)
    torch.testing.assert_close(output, expected)
    gradient = torch.randn_like(expected)
    torch.testing.assert_close(
        torch.autograd.grad(output, leaves, gradient),
        torch.autograd.grad(expected, leaves, gradient),
    )


def test_a_step_continues_the_sums():
    q, k = (tokens(1, 2, 9, 4).abs() for _ in range(2))
    v = tokens(1, 2, 9, 5)
    kv, k_sum = torch.zeros(1, 2, 4, 5).double(), torch.zeros(1, 2, 4).double()
    expected = reference.linear_attention(q, k, v, causal=True)
    for i in range(9):
        token = slice(i, i + 1)
        output, kv, k_sum = linear.step(
            q[:, :, token], k[:, :, token], v[:, :, token], kv, k_sum
        )
        torch.testing.assert_close(output, expected[:, :, token])


@pytest.mark.parametrize("stabilizer", ["token", "row", "prefix"])
@pytest.mark.parametrize("gradient", [False, True])
def test_plain_features_equal_the_definition(stabilizer, gradient):
    x = tokens(2, 4, 23, 8).requires_grad_()
    projection = tokens(4, 6, 8)
    found = linear.positive_features(x, projection, stabilizer, 1e-3, gradient)
    expected = reference.random_features(
        x, projection, "positive", stabilizer, gradient, 1e-3
    )
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        torch.autograd.grad(found[0].square().sum(), x),
        torch.autograd.grad(expected[0].square().sum(), x),
    )


def test_useful_operations_are_those_of_the_recurrence():
    forward = linear.scan_flops(8, 100, 64, 32, False)
    # Per token and head: S += k v, q S; z += k, q z; two operations per entry.
    assert forward == 8 * 100 * (2 * 2 * 64 * 32 + 2 * 2 * 64)
    assert linear.scan_flops(8, 100, 64, 32, True) == forward // 2 * 7
