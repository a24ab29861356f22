"""Causality, and decoding through ``incremental_state``."""

import copy
import math
import pickle

import pytest
import torch

from subquad import UnsupportedPattern
from subquad.nn import (
    CosformerAttention,
    LocalAttention,
    MultiheadAttention,
    Performer,
)
from tests.nn.util import CAUSAL, DECODING, HEADS, WIDTH, close, decode

L = 13
CUTS = [[L], [1] * L, [4, 1, 1, 7], [6, 3, 4]]
SELF_CAUSAL = [pattern for pattern in CAUSAL if not pattern.cross]


@pytest.mark.parametrize("pattern", CAUSAL, ids=str)
def test_the_future_changes_no_bit(pattern):
    module = pattern.build()
    query, key = pattern.inputs(L)
    expected, _ = module(query, key)
    for cut in range(L):
        for poison in (math.nan, math.inf) if pattern.isolates else (1e3, -7.0):
            poisoned = query.clone()
            poisoned[cut:] = poison
            output, _ = module(poisoned, key if pattern.cross else poisoned)
            assert torch.equal(output[:cut], expected[:cut]), cut


@pytest.mark.parametrize("pattern", SELF_CAUSAL, ids=str)
def test_the_future_changes_no_bit_behind_padding(pattern):
    module = pattern.build()
    query, _ = pattern.inputs(L)
    mask = torch.zeros(3, L, dtype=torch.bool)
    mask[0, :3] = mask[1, [1, 4, 9]] = mask[2, 8:] = True
    expected, _ = module(query, key_padding_mask=mask)
    for cut in range(L):
        poisoned = query.clone()
        poisoned[cut:] = math.nan if pattern.isolates else 1e3
        output, _ = module(poisoned, key_padding_mask=mask)
        assert torch.equal(output[:cut], expected[:cut]), cut


@pytest.mark.parametrize("cuts", CUTS, ids=str)
@pytest.mark.parametrize("pattern", DECODING, ids=str)
def test_prefix_and_steps_equal_the_parallel_form(pattern, cuts):
    module = pattern.build()
    query, key = pattern.inputs(L)
    expected, _ = module(query, key)
    close(decode(module, query, cuts, key if pattern.cross else None), expected)


@pytest.mark.parametrize("cuts", CUTS, ids=str)
@pytest.mark.parametrize("kind", ["left", "scattered", "late"])
@pytest.mark.parametrize("pattern", SELF_CAUSAL, ids=str)
def test_prefix_and_steps_equal_the_parallel_form_with_padding(pattern, kind, cuts):
    module = pattern.build()
    query, _ = pattern.inputs(L)
    mask = torch.zeros(3, L, dtype=torch.bool)
    if kind == "left":
        mask[0, :5] = mask[1, :2] = True
    elif kind == "scattered":
        mask[0, [0, 3, 4, 5, 6, 11]] = mask[1, [1, 2, 12]] = mask[2] = True
    else:
        mask[0, 8:] = mask[2, 5] = True
    expected, _ = module(query, key_padding_mask=mask)
    close(decode(module, query, cuts, padding=mask), expected)


@pytest.mark.parametrize("pattern", SELF_CAUSAL, ids=str)
def test_masks_may_come_and_go(pattern):
    module = pattern.build()
    query, _ = pattern.inputs(L)
    mask = torch.zeros(3, L, dtype=torch.bool)
    mask[1, 4:6] = mask[2, 9] = True
    expected, _ = module(query, key_padding_mask=mask)
    state, outputs = {}, []
    for t in range(L):
        step = mask[:, t : t + 1]
        options = {"key_padding_mask": step} if step.any() else {}
        outputs.append(module(query[t : t + 1], incremental_state=state, **options)[0])
    close(torch.cat(outputs), expected)


@pytest.mark.parametrize("pattern", [p for p in DECODING if p.cross], ids=str)
def test_memory_is_projected_once(pattern):
    module = pattern.build()
    query, key = pattern.inputs(L)
    padding = torch.zeros(3, 9, dtype=torch.bool)
    padding[0, :4] = padding[1, [0, 2, 8]] = True
    expected, _ = module(query, key, key_padding_mask=padding)
    state, outputs = {}, []
    for t in range(L):
        memory = (key, key, padding) if t == 0 else (None, None, None)
        outputs.append(
            module(
                query[t : t + 1],
                memory[0],
                memory[1],
                key_padding_mask=memory[2],
                incremental_state=state,
                static_kv=True,
            )[0]
        )
    close(torch.cat(outputs), expected)
    # Without static_kv the memory of each call counts.
    state = {}
    outputs = [
        module(step, key, key_padding_mask=padding, incremental_state=state)[0]
        for step in query.split(1)
    ]
    close(torch.cat(outputs), expected)


@pytest.mark.parametrize("order", [[2, 0, 1], [1, 1, 0], [0], [2, 2, 1, 0, 1]], ids=str)
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("pattern", DECODING, ids=str)
def test_reorder(pattern, padded, order):
    module = pattern.build()
    query, key = pattern.inputs(L)
    size = len(key) if pattern.cross else L
    mask = torch.zeros(3, size, dtype=torch.bool)
    mask[0, 1:4] = mask[2, 0] = padded
    order = torch.tensor(order)
    again = query[6:].index_select(1, order)
    state = {}
    before = decode(
        module,
        query[:6],
        [4, 1, 1],
        key if pattern.cross else None,
        mask if pattern.cross else mask[:, :6],
        state,
    )
    assert module.reorder_incremental_state(state, order) is state
    memory = key.index_select(1, order) if pattern.cross else None
    moved = mask.index_select(0, order)
    after = decode(
        module,
        again,
        [1] * 7,
        memory,
        moved if pattern.cross else moved[:, 6:],
        state,
    )
    full = torch.cat((query[:6].index_select(1, order), again))
    expected, _ = module(
        full, memory if pattern.cross else full, key_padding_mask=moved
    )
    close(torch.cat((before.index_select(1, order), after)), expected)


def test_reorder_without_a_state_adds_none():
    module = LocalAttention(WIDTH, HEADS, causal=True)
    assert module.reorder_incremental_state({}, torch.tensor([0])) == {}


@pytest.mark.parametrize("padded", [False, True])
def test_the_state_of_local_attention_is_bounded(padded):
    module = LocalAttention(WIDTH, HEADS, window_size=4, causal=True)
    state = {}
    for count in (50, *[1] * 12, 30):
        mask = torch.rand(2, count) < 0.3 if padded else None
        query = torch.randn(count, 2, WIDTH)
        module(query, key_padding_mask=mask, incremental_state=state)
        for name, tensor in module._get_input_buffer(state).items():
            if tensor is not None:
                assert tensor.size(0) == 2, name
                assert tensor.numel() <= 2 * 4 * WIDTH, name
                storage = tensor.untyped_storage().nbytes() / tensor.element_size()
                assert storage <= 2 * 2 * 4 * WIDTH, name


def test_modules_share_a_state_without_meeting():
    first = LocalAttention(WIDTH, HEADS, window_size=3, causal=True)
    second = copy.deepcopy(first)
    third = pickle.loads(pickle.dumps(first))
    assert len({first.name, second.name, third.name}) == 3
    assert all(first.name not in key for key in first.state_dict())
    query = torch.randn(L, 2, WIDTH)
    expected, _ = first(query)
    state = {}
    for module in (first, second, third):
        close(decode(module, query, [1] * L, state=state), expected)
    assert state.keys() == {first.name, second.name, third.name}


def test_a_call_that_fails_leaves_the_state_alone():
    module = MultiheadAttention(WIDTH, HEADS)
    state = {}
    decode(module, torch.randn(4, 2, WIDTH), [1] * 4, state=state)
    before = dict(module._get_input_buffer(state))
    with pytest.raises(ValueError, match="attn_mask must be"):
        module(
            torch.randn(1, 2, WIDTH),
            incremental_state=state,
            attn_mask=torch.zeros(1, 3),
        )
    after = module._get_input_buffer(state)
    assert before.keys() == after.keys()
    assert all(after[name] is tensor for name, tensor in before.items())


def test_softmax_attention_decodes_with_a_mask_of_the_callers():
    module = MultiheadAttention(WIDTH, HEADS)
    query = torch.randn(L, 2, WIDTH)
    mask = torch.full((L, L), -math.inf).triu(1)
    expected, _ = module(query, attn_mask=mask)
    close(decode(module, query, [1] * L), expected)


@pytest.mark.parametrize("options", [{"add_bias_kv": True}, {"add_zero_attn": True}])
def test_added_keys_are_not_cached(options):
    module = MultiheadAttention(WIDTH, HEADS, causal=True, **options)
    query = torch.randn(L, 2, WIDTH)
    close(decode(module, query, [4] + [1] * 9), module(query)[0])


def test_what_cannot_decode_says_so():
    query = torch.randn(1, 2, WIDTH)
    module = LocalAttention(WIDTH, HEADS)
    with pytest.raises(UnsupportedPattern, match="decoding needs causal=True"):
        module(query, incremental_state={})
    for module in (Performer(WIDTH, HEADS), CosformerAttention(WIDTH, HEADS)):
        with pytest.raises(UnsupportedPattern, match="decoding needs causal=True"):
            module(query, incremental_state={})
    module = LocalAttention(WIDTH, HEADS, cross=True)
    with pytest.raises(UnsupportedPattern, match="decodes needs causal=True"):
        module(query, query, incremental_state={}, static_kv=True)
