"""Habits of the CAB surface that no golden vector shows."""

import argparse
import copy
import inspect
import warnings

import pytest
import torch

from subquad import UnsupportedPattern, nn
from subquad.compat import cab
from subquad.compat.cab import base

WIDTH, HEADS = 24, 4
WEIGHTED = [cab.MultiheadAttention, cab.LocalAttention]
CLASSES = [*WEIGHTED, cab.Performer, cab.CosformerAttention]


def build(cls, **options):
    torch.manual_seed(0)
    return cls(embed_dim=WIDTH, num_heads=HEADS, **options).eval()


def test_public_names():
    names = (
        "AbstractAttention MultiheadAttention LocalAttention Performer "
        "CosformerAttention register_cls get_cls MODULE_REGISTRY "
        "AVAILABLE_ATTENTIONS add_nested_argument remove_argument NestedNamespace "
        "fsmha"
    ).split()
    assert set(cab.__all__) == set(names)
    assert cab.AVAILABLE_ATTENTIONS == [
        "MultiheadAttention",
        "CosformerAttention",
        "LocalAttention",
        "Performer",
    ]


@pytest.mark.parametrize("cls", CLASSES)
def test_forward_takes_the_projects_positions(cls):
    names = list(inspect.signature(cls.forward).parameters)
    if cls is cab.CosformerAttention:
        assert names.pop(-2) == "eps"
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
    module = cab.Performer(7, embed_dim=WIDTH, num_heads=HEADS)
    assert module.approx_attn_dim == 7
    for cls in (cab.LocalAttention, cab.Performer):
        with pytest.raises(TypeError):
            cls(WIDTH, HEADS)
    names = list(inspect.signature(cab.CosformerAttention).parameters)
    assert (
        names
        == (
            "embed_dim num_heads kdim vdim dropout has_outproj act_fun cross causal "
            "unknown"
        ).split()
    )


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


@pytest.mark.parametrize("cls", WEIGHTED)
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
    twin.eval()
    torch.testing.assert_close(
        twin(query)[0], module(query, need_weights=False)[0], atol=1e-6, rtol=0
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


@pytest.mark.parametrize("cls", [cab.Performer, cab.CosformerAttention])
def test_sums_have_no_weights_and_know_no_attention_mask(cls):
    module, query = build(cls), torch.randn(5, 2, WIDTH)
    expected, weights = module(query, need_head_weights=True)
    assert weights is None
    with pytest.warns(UserWarning, match="attn_mask has no effect"):
        output, _ = module(query, attn_mask=torch.full((5, 5), -1e9))
    assert torch.equal(output, expected)
    output, _ = module(query, query_padding_mask=torch.ones(2, 5))
    assert torch.equal(output, expected)


@pytest.mark.parametrize("cls", [cab.Performer, cab.CosformerAttention])
def test_dropout_acts_on_the_result(cls):
    module, query = build(cls, dropout=0.999), torch.randn(5, 2, WIDTH)
    expected = build(cls)(query)[0]
    torch.testing.assert_close(module(query)[0], expected)
    torch.manual_seed(1)
    output, _ = module.train()(query)
    bias = module.out_proj.bias
    assert (output == bias).all(-1).sum() >= 8  # of 10 tokens


def test_performer_hides_the_keys_of_another_row():
    module, query = build(cab.Performer), torch.randn(5, 2, WIDTH)
    mask = torch.zeros(2, 5, dtype=torch.bool)
    expected, _ = module(query, key_padding_mask=mask)
    torch.testing.assert_close(module(query)[0], expected)
    mask[0, 3:] = True
    output, _ = module(query, key_padding_mask=mask)
    # An even number of heads and two rows: in both rows heads 0 and 2 obey the
    # mask of row 0.
    moved = (output - expected).abs().amax((0, 2))
    assert (moved > 1e-4).all()
    heads = module._split(module.q_proj(query), HEADS, False)
    visible = ~mask[:, None, None]
    masked, _ = module._product(heads, heads, heads, visible, False, False)
    free, _ = module._product(heads, heads, heads, None, False, False)
    same = [torch.equal(masked[:, h], free[:, h]) for h in range(HEADS)]
    assert same == [False, True, False, True]


def test_performer_sees_the_future():
    with pytest.warns(UserWarning, match="causal has no effect"):
        module = build(cab.Performer, causal=True)
    assert module.causal is False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert build(cab.Performer, causal=True, cross=True).causal is False
    query = torch.randn(5, 2, WIDTH)
    assert torch.equal(module(query)[0], build(cab.Performer)(query)[0])


def test_directions_of_performer():
    module, query = build(cab.Performer, approx_attn_dim=9), torch.randn(5, 2, WIDTH)
    assert module.eval_proj.shape == (HEADS, 9, WIDTH // HEADS)
    state = module.state_dict()
    other = cab.Performer(9, embed_dim=WIDTH, num_heads=HEADS).eval()
    kept = other.eval_proj.clone()
    other.load_state_dict({k: v for k, v in state.items() if k != "eval_proj"})
    assert torch.equal(other.eval_proj, kept)
    other.load_state_dict(state)
    assert torch.equal(other(query)[0], module(query)[0])
    module.train()
    assert not torch.equal(module(query)[0], module(query)[0])


def test_performer_adds_keys():
    module = build(cab.Performer, add_bias_kv=True, add_zero_attn=True)
    query = torch.randn(3, 2, WIDTH)
    mask = torch.zeros(2, 3, dtype=torch.bool)
    torch.testing.assert_close(
        module(query, key_padding_mask=mask)[0], module(query)[0]
    )
    assert not torch.equal(build(cab.Performer)(query)[0], module(query)[0])


def test_performer_keeps_all_keys():
    module, query = build(cab.Performer), torch.randn(4, 2, WIDTH)
    state = {}
    for t in range(4):
        output, _ = module(query[t : t + 1], incremental_state=state)
        expected, _ = module(query[t : t + 1], query[: t + 1])
        torch.testing.assert_close(output, expected)
    assert state[module.name]["prev_key"].shape == (2, HEADS, 4, WIDTH // HEADS)


def test_cosformer_takes_the_query_for_a_missing_value():
    module = build(cab.CosformerAttention, cross=True)
    query, key = torch.randn(2, 5, 2, WIDTH)
    output, _ = module(query, key)
    assert torch.equal(output, module(query, key, query)[0])
    assert not torch.equal(output, module(query, key, key)[0])


def test_cosformer_knows_no_padding_and_no_past():
    module, query = build(cab.CosformerAttention), torch.randn(5, 2, WIDTH)
    expected, _ = module(query)
    nothing = torch.ones(2, 5)
    assert torch.equal(module(query, key_padding_mask=nothing)[0], expected)
    state = {}
    for _ in range(2):
        output, _ = module(query[3:4], incremental_state=state, static_kv=True)
        assert torch.equal(output, module(query[3:4])[0])
    assert state == {}
    module.causal = True
    output, _ = module(query, incremental_state=state)
    assert torch.equal(output, expected)
    assert not torch.equal(module(query)[0], expected)


def test_cosformer_activations():
    query = torch.randn(5, 2, WIDTH)
    relu, elu = (
        build(cab.CosformerAttention, act_fun=name) for name in ("relu", "elu")
    )
    assert not torch.equal(relu(query)[0], elu(query)[0])
    torch.testing.assert_close(elu(query)[0], elu.left_product(query))
    with pytest.raises(ValueError, match="act_fun must be 'relu' or 'elu', got 'tanh'"):
        build(cab.CosformerAttention, act_fun="tanh")


def test_left_product_hides_what_a_mask_hides():
    module, query = build(cab.CosformerAttention), torch.randn(5, 2, WIDTH)
    mask = torch.full((5, 5), float("-inf")).triu(1)
    torch.testing.assert_close(
        module.left_product(query, attn_mask=mask), module(query)[0]
    )
    module.causal = True
    torch.testing.assert_close(
        module.left_product(query, attn_mask=mask), module(query)[0]
    )


def test_cosformer_widths_and_out_proj():
    query = torch.randn(5, 2, WIDTH)
    module = cab.CosformerAttention(WIDTH, HEADS, kdim=10)
    assert (module.kdim, module.vdim) == (10, WIDTH)
    module = cab.CosformerAttention(WIDTH, HEADS, vdim=6)
    assert module(query, query, torch.randn(5, 2, 6))[0].shape == query.shape
    bare = build(cab.CosformerAttention, has_outproj=False)
    assert "out_proj.weight" in bare.state_dict()
    whole = build(cab.CosformerAttention)
    assert torch.equal(whole.out_proj(bare(query)[0]), whole(query)[0])


def test_cosformer_draws_as_linear_layers_do():
    module = build(cab.CosformerAttention)
    torch.manual_seed(0)
    for name in ("k_proj", "v_proj", "q_proj", "out_proj"):
        layer = torch.nn.Linear(WIDTH, WIDTH)
        assert torch.equal(getattr(module, name).weight, layer.weight), name
        assert torch.equal(getattr(module, name).bias, layer.bias), name


def test_cosformer_refuses_causality():
    text = "^CosformerAttention cannot do causal attention now"
    with pytest.raises(UnsupportedPattern, match=text):
        build(cab.CosformerAttention, causal=True, cross=True)


@pytest.mark.parametrize(
    ("cls", "words", "options"),
    [
        (cab.Performer, ["--approx-attn-dim", "7"], {"approx_attn_dim": 7}),
        (cab.CosformerAttention, ["--act-fn", "elu"], {"act_fun": "elu"}),
        (cab.CosformerAttention, ["--act-fun", "elu"], {"act_fun": "elu"}),
        (cab.CosformerAttention, [], {"act_fun": "relu"}),
    ],
)
def test_flags(cls, words, options):
    parser = cls.add_attn_specific_args(argparse.ArgumentParser())
    namespace = parser.parse_args(words, namespace=cab.NestedNamespace())
    assert vars(namespace.attn_args) == options
    build(cls, **options)
