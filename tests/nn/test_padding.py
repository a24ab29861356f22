"""Padding is absence."""

import math

import pytest
import torch

from tests.nn.util import CROSS, FEW, PATTERNS, SELF, WIDTH, close

MASKS = {
    "none": [[0] * 9] * 3,
    "right": [[0] * 9, [0] * 5 + [1] * 4, [0] + [1] * 8],
    "left": [[0] * 9, [1] * 4 + [0] * 5, [1] * 8 + [0]],
    "scattered": [[0, 1] * 4 + [0], [1, 1, 0, 0, 1, 0, 1, 0, 0], [0] * 9],
    "whole": [[0] * 9, [1] * 9, [0, 0, 1, 0, 0, 0, 0, 0, 1]],
}
POISON = [math.nan, -math.inf]


def masks(kind):
    return torch.tensor(MASKS[kind], dtype=torch.bool)


def shifted(mask):
    """Another mask, for the queries of cross-attention."""
    return mask.roll(1, 0).roll(2, 1)


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_a_padded_row_equals_its_valid_tokens_alone(pattern, kind):
    module = pattern.build(torch.float64)
    query, key = pattern.inputs(9, 9, dtype=torch.float64)
    mask = masks(kind)
    query_mask = shifted(mask) if pattern.cross else mask
    options = {"query_padding_mask": query_mask} if pattern.cross else {}
    output, weights = module(
        query, key, key_padding_mask=mask, need_weights=pattern.weighs, **options
    )
    for b in range(3):
        there = ~query_mask[b]
        alone = query[there, b : b + 1]
        other = key[~mask[b], b : b + 1] if pattern.cross else alone
        expected, expected_weights = module(alone, other, need_weights=pattern.weighs)
        close(output[there, b : b + 1], expected)
        absent = output[~there, b]
        assert torch.equal(absent, module.out_proj.bias.expand_as(absent))
        if weights is None:
            continue
        if pattern.mechanism == "local":
            close(weights[b, there], expected_weights[0])
        else:
            close(weights[b][there][:, ~mask[b]], expected_weights[0])
            assert not weights[b][:, mask[b]].any()
        assert not weights[b, ~there].any()


@pytest.mark.parametrize("poison", POISON)
@pytest.mark.parametrize("kind", ["right", "left", "scattered", "whole"])
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_what_lies_in_the_padding_changes_no_bit(pattern, kind, poison):
    mask = masks(kind)
    query_mask = shifted(mask) if pattern.cross else mask
    options = {"query_padding_mask": query_mask} if pattern.cross else {}
    results = []
    for fill in (0.5, poison):
        module = pattern.build().train()
        query, key = pattern.inputs(9, 9)
        query = query.masked_fill(query_mask.t()[:, :, None], fill)
        key = key.masked_fill(mask.t()[:, :, None], fill) if pattern.cross else query
        query = query.requires_grad_()
        leaves = [query]
        if pattern.cross:
            leaves.append(key.requires_grad_())
        else:
            key = query
        output, weights = module(
            query, key, key_padding_mask=mask, need_weights=pattern.weighs, **options
        )
        (output * torch.arange(WIDTH)).sum().backward()
        gradients = [leaf.grad for leaf in leaves]
        gradients += [parameter.grad for parameter in module.parameters()]
        gradients += [] if weights is None else [weights]
        results.append([output, *gradients])
    for clean, poisoned in zip(*results, strict=True):
        assert torch.equal(clean, poisoned)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_masks_of_every_dtype(pattern):
    module = pattern.build()
    query, key = pattern.inputs(9, 9)
    mask = masks("scattered")
    expected, _ = module(query, key, key_padding_mask=mask)
    for dtype in (torch.uint8, torch.float32, torch.float16, torch.int64):
        output, _ = module(query, key, key_padding_mask=mask.to(dtype))
        assert torch.equal(output, expected)
    output, _ = module(query, key, key_padding_mask=-3.5 * mask.float())
    assert torch.equal(output, expected)


@pytest.mark.parametrize("pattern", SELF, ids=str)
def test_in_self_attention_either_mask_makes_padding(pattern):
    module = pattern.build()
    query, _ = pattern.inputs(9)
    one, other = masks("right"), masks("left")
    both = one | other
    expected, _ = module(query, key_padding_mask=both)
    output, _ = module(query, key_padding_mask=one, query_padding_mask=other)
    assert torch.equal(output, expected)
    output, _ = module(query, query_padding_mask=both)
    assert torch.equal(output, expected)


# The centre of local attention that is not causal depends on the number of queries.
@pytest.mark.parametrize("pattern", [p for p in CROSS if p.decodes], ids=str)
def test_query_padding_of_cross_attention_leaves_other_queries_alone(pattern):
    module = pattern.build()
    query, key = pattern.inputs(9)
    mask = masks("right")
    expected, _ = module(query, key)
    output, _ = module(query, key, query_padding_mask=mask)
    there = ~mask.t()
    close(output[there], expected[there])
    bias = module.out_proj.bias.expand_as(output[~there])
    assert torch.equal(output[~there], bias)


@pytest.mark.parametrize("pattern", FEW, ids=str)
def test_gradients_of_a_padded_batch_are_those_of_its_rows(pattern):
    mask = masks("scattered")
    query_mask = shifted(mask) if pattern.cross else mask
    query, key = pattern.inputs(9, 9, dtype=torch.float64)
    weight = torch.randn(9, 3, WIDTH, dtype=torch.float64)
    module, twin = pattern.build(torch.float64), pattern.build(torch.float64)

    padded = query.clone().requires_grad_()
    other = key if pattern.cross else padded
    options = {"query_padding_mask": query_mask} if pattern.cross else {}
    output, _ = module(padded, other, key_padding_mask=mask, **options)
    (output * weight)[~query_mask.t()].sum().backward()

    alone = query.clone().requires_grad_()
    for b in range(3):
        there = ~query_mask[b]
        row = alone[there, b : b + 1]
        other = key[~mask[b], b : b + 1] if pattern.cross else row
        (twin(row, other)[0] * weight[there, b : b + 1]).sum().backward()
    close(padded.grad, alone.grad)
    assert not padded.grad[query_mask.t()].any()
    expected = dict(twin.named_parameters())
    for name, parameter in module.named_parameters():
        close(parameter.grad, expected[name].grad)
