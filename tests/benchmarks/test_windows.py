import pytest
import torch

from subquad import reference
from subquad.benchmarks.windows import KINDS, Banded, window_of


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1, 5, 16])
@pytest.mark.parametrize("length", [1, 7, 48, 67])
def test_banded_equals_the_definition(kind, size, length):
    window = window_of(kind, size)
    q, k, v = (torch.randn(2, 3, length, 8, dtype=torch.float64) for _ in range(3))
    expected = reference.window_attention(
        q,
        k,
        v,
        block=window.block,
        left=window.left,
        right=window.right,
        causal=window.causal,
    )
    for longest in (32, 64):
        banded = Banded.of(window, length, longest).double()
        torch.testing.assert_close(banded.einsum(q, k, v), expected)
        torch.testing.assert_close(banded.sdpa(q, k, v), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1, 5, 64])
@pytest.mark.parametrize("length", [0, 1, 23, 64])
def test_pairs_counts_what_is_visible(kind, size, length):
    window = window_of(kind, size)
    i = torch.arange(length)
    visible = window.visible(i[:, None], i, length)
    assert window.pairs(length) == int(visible.sum())
