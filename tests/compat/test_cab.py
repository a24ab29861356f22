"""Habits of the CAB surface that no golden vector shows."""

import copy
import inspect
import warnings

import pytest
import torch

from subquad import UnsupportedPattern, nn
from subquad.compat import cab
from subquad.compat.cab import base

WIDTH, HEADS = 24, 4
CLASSES = [cab.MultiheadAttention, cab.LocalAttention]


def build(cls, **options):
    torch.manual_seed(0)
    return cls(embed_dim=WIDTH, num_heads=HEADS, **options).eval()


def test_public_names():
    names = (
        "AbstractAttention MultiheadAttention LocalAttention register_cls get_cls "
        "MODULE_REGISTRY AVAILABLE_ATTENTIONS add_nested_argument remove_argument "
        "NestedNamespace fsmha"
    ).split()
    assert set(cab.__all__) == set(names)
    assert cab.AVAILABLE_ATTENTIONS == ["MultiheadAttention", "LocalAttention"]


@pytest.mark.parametrize("cls", CLASSES)
def test_forward_takes_the_projects_positions(cls):
    names = list(inspect.signature(cls.forward).parameters)
    assert (
        names
        == (
            "self query key value query_padding_mask key_padding_mask need_weights "
            "need_head_weights attn_mask static_kv incremental_state batch_first "
            "unknown"
        ).split()
    )


def test_constructors_take_the_projects_positions():
    names = list(inspect.signature(cab.MultiheadAttention).parameters)
    assert (
        names
        == (
            "embed_dim num_heads dropout bias add_bias_kv add_zero_attn kdim vdim "
            "cross causal unknown"
        ).split()
    )
    module = cab.LocalAttention(7, embed_dim=WIDTH, num_heads=HEADS)
    assert (module.wsize, module.window_size) == (7, 7)
    with pytest.raises(TypeError):
        cab.LocalAttention(WIDTH, HEADS)


@pytest.mark.parametrize("cls", CLASSES)
def test_unknown_options_warn_once(cls, monkeypatch):
    monkeypatch.setattr(base, "_warned", set())
    with pytest.warns(UserWarning, match="'windowsize' has no effect"):
        module = build(cls, windowsize=3)
    query = torch.randn(5, 2, WIDTH)
    with pytest.warns(UserWarning, match="'noise' has no effect"):
        module(query, noise=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build(cls, windowsize=3)
        module(query, noise=1)


def test_a_class_of_ones_own():
    class Mine(cab.AbstractAttention):
        pass

    with pytest.warns(UserWarning, match="Mine: the keyword argument 'sze'"):
        module = Mine(cross=True, sze=3)
    assert (module.cross, module.causal) == (True, False)
    assert module.name.startswith("Mine.")


@pytest.mark.parametrize("cls", CLASSES)
def test_heads_that_do_not_divide(cls):
    with pytest.raises(AssertionError, match=r"^embed_dim must be divisible by"):
        cls(embed_dim=10, num_heads=4)


def test_local_attention_refuses_cross_attention():
    text = "^LocalAttention cannot do cross attention now"
    with pytest.raises(UnsupportedPattern, match=text):
        build(cab.LocalAttention, cross=True)
    module = build(cab.LocalAttention)
    with pytest.raises(AssertionError, match=text):
        module(torch.randn(1, 2, WIDTH), static_kv=True, incremental_state={})


@pytest.mark.parametrize("cls", CLASSES)
def test_weights_come_unasked_and_have_gradients(cls):
    query = torch.randn(5, 2, WIDTH, requires_grad=True)
    output, weights = build(cls)(query)
    assert weights.shape[:2] == (2, 5)
    assert torch.autograd.grad(weights.square().sum(), query)[0].abs().sum() > 0
    fused, none = build(cls)(query, need_weights=False)
    assert none is None
    torch.testing.assert_close(fused, output)


@pytest.mark.parametrize("flags", [{"cross": True}, {"causal": True}])
def test_flags_of_softmax_attention_have_no_effect(flags):
    query = torch.randn(5, 2, WIDTH)
    expected, _ = build(cab.MultiheadAttention)(query)
    module = build(cab.MultiheadAttention, **flags)
    assert torch.equal(module(query)[0], expected)
    for name, value in flags.items():
        assert getattr(module, name) is value


def test_padded_queries_are_computed():
    query = torch.randn(5, 2, WIDTH)
    mask = torch.zeros(2, 5, dtype=torch.bool)
    mask[0, 3:] = True
    module = build(cab.MultiheadAttention)
    output, _ = module(query, key_padding_mask=mask)
    cross = nn.MultiheadAttention(WIDTH, HEADS, cross=True)
    cross.load_state_dict(module.state_dict())
    torch.testing.assert_close(output, cross(query, key_padding_mask=mask)[0])


def test_query_padding_and_the_mask_of_local_attention_have_no_effect():
    query = torch.randn(5, 2, WIDTH)
    module = build(cab.LocalAttention)
    expected, _ = module(query)
    nothing = torch.ones(2, 5)
    assert torch.equal(module(query, query_padding_mask=nothing)[0], expected)
    mask = torch.full((5, 5), -1e9)
    assert torch.equal(module(query, attn_mask=mask)[0], expected)


def test_a_bool_mask_is_added_and_uint8_with_it():
    query = torch.randn(5, 2, WIDTH)
    module = build(cab.MultiheadAttention)
    mask = torch.rand(5, 5) < 0.5
    expected, _ = module(query, attn_mask=mask.float())
    for kind in (torch.bool, torch.uint8):
        assert torch.equal(module(query, attn_mask=mask.to(kind))[0], expected)


def test_a_mask_of_nothing_changes_local_attention():
    query = torch.randn(9, 2, WIDTH)
    module = build(cab.LocalAttention, wsize=2)
    plain, _ = module(query)
    masked, _ = module(query, key_padding_mask=torch.zeros(2, 9, dtype=torch.bool))
    # Slots out of range repeat the edge: only the middle is untouched.
    torch.testing.assert_close(masked[2:-2], plain[2:-2])
    assert (masked[:2] - plain[:2]).abs().max() > 1e-3


def test_memory_decodes_batch_first():
    module = build(cab.MultiheadAttention)
    query, key = torch.randn(2, 5, WIDTH), torch.randn(2, 7, WIDTH)
    expected, _ = module(query, key, batch_first=True)
    state = {module.name: {}}
    for t in range(5):
        output, _ = module(
            query[:, t : t + 1],
            key if t == 0 else None,
            static_kv=True,
            incremental_state=state,
            batch_first=True,
        )
        torch.testing.assert_close(output, expected[:, t : t + 1])


def test_added_keys_need_no_mask():
    module = build(cab.MultiheadAttention, add_bias_kv=True, add_zero_attn=True)
    query = torch.randn(3, 2, WIDTH)
    _, weights = module(query)
    assert weights.shape == (2, 3, 5)
    state = {}
    for t in range(3):
        _, weights = module(query[t : t + 1], incremental_state=state)
        assert weights.shape == (2, 1, t + 3)


def test_all_tokens_of_a_call_see_each_other_in_decoding():
    module = build(cab.LocalAttention, wsize=2, causal=True)
    query = torch.randn(4, 1, WIDTH)
    state = {}
    _, weights = module(query, incremental_state=state)
    assert weights.shape == (1, 4, 4)
    assert (weights > 0).all()
    _, weights = module(query[:1], incremental_state=state)
    assert weights.shape == (1, 1, 2)


def test_the_mask_of_a_full_window_does_not_move():
    module = build(cab.LocalAttention, wsize=2, causal=True)
    state = {}
    for masked in (1, 0):
        mask = torch.tensor([[masked]])
        module(torch.randn(1, 1, WIDTH), key_padding_mask=mask, incremental_state=state)
    _, weights = module(torch.randn(1, 1, WIDTH), incremental_state=state)
    assert weights.tolist() == [[[0.0, 1.0]]]


def test_a_window_of_padding_gives_zero():
    module = build(cab.LocalAttention, wsize=1, causal=True)
    output, _ = module(
        torch.randn(1, 1, WIDTH),
        key_padding_mask=torch.ones(1, 1),
        incremental_state={},
    )
    assert torch.equal(output[0, 0], module.out_proj.bias)


@pytest.mark.parametrize("cls", CLASSES)
def test_checkpoints_are_those_of_the_plain_classes(cls):
    module = build(cls)
    twin = getattr(nn, cls.__name__)(WIDTH, HEADS)
    twin.load_state_dict(module.state_dict(), strict=True)
    query = torch.randn(20, 2, WIDTH)
    torch.testing.assert_close(
        twin(query)[0], module(query, need_weights=False)[0], atol=0, rtol=0
    )


def test_fsmha():
    @cab.fsmha
    class FSLocal(cab.LocalAttention):
        pass

    module = FSLocal(embed_dim=WIDTH, num_heads=HEADS, causal=True)
    assert type(module).__name__ == "FSCls"
    assert module.name.startswith("FSCls.")
    assert copy.deepcopy(module).name != module.name
    # A state that is already as large as the order is left alone in cross-attention.
    for cross, expected in ((False, [1.0, 0.0]), (True, [0.0, 1.0])):
        module = cab.fsmha(cab.MultiheadAttention)(
            WIDTH, HEADS, encoder_decoder_attention=cross
        )
        state = {module.name: {"prev_key": torch.tensor([0.0, 1.0])}}
        module.reorder_incremental_state(state, torch.tensor([1, 0]))
        assert state[module.name]["prev_key"].tolist() == expected
        assert module.reorder_incremental_state({}, torch.tensor([0])) == {}
