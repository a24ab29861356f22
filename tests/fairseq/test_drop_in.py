"""``subquad.fairseq.MultiheadAttention`` in the place of fairseq's."""

from inspect import signature

import pytest
import torch

from subquad import UnsupportedPattern, nn
from subquad.compat import cab
from tests.fairseq.util import plugin  # noqa: F401  (skips without fairseq)

WIDTH, HEADS, KEYS = 24, 4, 12


@pytest.fixture(scope="module")
def classes():
    from fairseq.modules import MultiheadAttention as Theirs

    from subquad.fairseq import MultiheadAttention as Ours

    return Theirs, Ours


ROLES = {
    "self": {"self_attention": True},
    "cross": {"encoder_decoder_attention": True, "kdim": KEYS, "vdim": KEYS},
    "neither": {"kdim": KEYS, "vdim": KEYS},
    "learned": {"self_attention": True, "add_bias_kv": True, "add_zero_attn": True},
}


def pair(classes, **options):
    """Both modules with the same parameters, loaded in both directions."""
    theirs, ours = (cls(WIDTH, HEADS, **options).eval() for cls in classes)
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    back = classes[0](WIDTH, HEADS, **options)
    back.load_state_dict(ours.state_dict(), strict=True)
    order = [[name for name, _ in m.named_parameters()] for m in (theirs, ours)]
    assert order[0] == order[1]
    return theirs, ours


def close(actual, expected):
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def padding(rows, length):
    mask = torch.zeros(rows, length, dtype=torch.bool)
    mask[1, -2:] = True
    return mask


def test_signatures(classes):
    for name in ("__init__", "forward", "reorder_incremental_state", "set_beam_size"):
        theirs, ours = (
            [
                (parameter.name, parameter.default)
                for parameter in signature(getattr(cls, name)).parameters.values()
            ]
            for cls in classes
        )
        assert theirs == ours


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("mask", ["none", "padding", "added", "both"])
def test_forward(classes, role, mask):
    theirs, ours = pair(classes, **ROLES[role])
    query = torch.randn(5, 3, WIDTH)
    key = query if theirs.self_attention else torch.randn(7, 3, KEYS)
    options = {}
    if mask in ("padding", "both"):
        options["key_padding_mask"] = padding(3, len(key))
    if mask in ("added", "both"):
        options["attn_mask"] = torch.randn(5, len(key))
    close(ours(query, key, key, **options), theirs(query, key, key, **options))
    output, weights = ours(query, key, key, need_weights=False, **options)
    assert weights is None
    close([output], theirs(query, key, key, need_weights=False, **options)[:1])


def test_gradients(classes):
    theirs, ours = pair(classes, self_attention=True)
    query = torch.randn(5, 3, WIDTH)
    for module in (theirs, ours):
        module(query, query, query)[0].square().sum().backward()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, atol=1e-4, rtol=1e-4)


def test_self_attention_decodes(classes):
    theirs, ours = pair(classes, self_attention=True)
    states = {}, {}
    orders = [[2, 0, 0, 1], [3, 3], None]
    rows = 3
    for order in orders:
        step = torch.randn(1, rows, WIDTH)
        outputs = [
            module(step, step, step, incremental_state=state)
            for module, state in zip((ours, theirs), states, strict=True)
        ]
        close(*outputs)
        if order is not None:
            for module, state in zip((ours, theirs), states, strict=True):
                module.reorder_incremental_state(state, torch.tensor(order))
            rows = len(order)
    for module, state in zip((ours, theirs), states, strict=True):
        assert module._get_input_buffer(state)["prev_key"].shape == (2, HEADS, 3, 6)


@pytest.mark.parametrize("beam", [1, 3])
def test_cross_attention_decodes(classes, beam):
    theirs, ours = pair(classes, **ROLES["cross"])
    memory = torch.randn(7, 2, KEYS).repeat_interleave(beam, 1)
    mask = padding(2, 7).repeat_interleave(beam, 0)
    states = {}, {}
    # Both sentences, then the second alone.
    orders = [torch.arange(2 * beam).flip(0).view(2, -1).flip(0).flatten()]
    orders += [torch.arange(beam, 2 * beam), None]
    rows = 2 * beam
    for order in orders:
        step = torch.randn(1, rows, WIDTH)
        outputs = []
        for module, state in zip((ours, theirs), states, strict=True):
            module.set_beam_size(beam)
            call = {"incremental_state": state, "static_kv": True}
            each = module(step, memory, memory, mask, **call)
            heads = module(step, memory, memory, mask, need_head_weights=True, **call)
            outputs.append([*each, heads[1]])
            if order is not None:
                module.reorder_incremental_state(state, order)
        close(*outputs)
        rows = rows if order is None else len(order)
    # One row of the memory for all beams.
    assert len(ours._get_input_buffer(states[0])["prev_key"]) == rows // beam


def test_scores_after_generation_take_the_whole_batch(classes):
    """A beam size that was set does not change what is no decoding."""
    _, ours = pair(classes, **ROLES["cross"])
    query, memory = torch.randn(5, 6, WIDTH), torch.randn(7, 6, KEYS)
    expected = ours(query, memory, memory, static_kv=True)
    ours.set_beam_size(3)
    close(ours(query, memory, memory, static_kv=True), expected)


def test_a_state_that_fairseq_made_is_continued(classes):
    theirs, ours = pair(classes, self_attention=True)
    first, second = torch.randn(2, 1, 3, WIDTH)
    mask = torch.tensor([[0], [1], [0]]).bool()
    state, copied = {}, {}
    theirs(first, first, first, mask, state)
    ours._set_input_buffer(copied, dict(theirs._get_input_buffer(state)))
    expected = theirs(second, second, second, None, state)
    close(ours(second, second, second, None, copied), expected)


def test_the_source_before_the_decoders_own_tokens(classes):
    """What ``--cross-self-attention`` asks of the module."""
    theirs, ours = pair(classes)
    memory, steps = torch.randn(4, 2, WIDTH), torch.randn(3, 1, 2, WIDTH)
    states = {}, {}
    for step in steps:
        key = torch.cat((memory, step)) if not states[0] else step
        close(
            *(
                module(step, key, key, incremental_state=state)
                for module, state in zip((ours, theirs), states, strict=True)
            )
        )


def test_packed_checkpoints(classes):
    _, ours = pair(classes, self_attention=True)
    expected = ours.state_dict()
    packed = {f"layer.{name}": value for name, value in expected.items()}
    for kind in ("weight", "bias"):
        parts = [packed.pop(f"layer.{letter}_proj.{kind}") for letter in "qkv"]
        packed[f"layer.in_proj_{kind}"] = torch.cat(parts)
    ours.upgrade_state_dict_named(packed, "layer")
    assert packed.keys() == {f"layer.{name}" for name in expected}
    for name, value in expected.items():
        assert torch.equal(packed[f"layer.{name}"], value)


def test_what_it_cannot_do_raises(classes):
    cls = classes[1]
    query = torch.randn(2, 1, WIDTH)
    with pytest.raises(NotImplementedError, match="xFormers"):
        cls(WIDTH, HEADS, xformers_att_config="{}")
    with pytest.raises(ValueError, match="kdim"):
        cls(WIDTH, HEADS, kdim=3, self_attention=True)
    module = cls(WIDTH, HEADS, dropout=0.1, encoder_decoder_attention=True)
    with pytest.raises(UnsupportedPattern, match="before_softmax"):
        module(query, query, query, before_softmax=True)
    with pytest.raises(ValueError, match="key and value"):
        module(query, None, None)
    with pytest.raises(ValueError, match="static_kv"):
        cls(WIDTH, HEADS)(query, query, query, static_kv=True)
    with pytest.raises(UnsupportedPattern, match="retain-dropout"):
        module.make_generation_fast_(name="x", retain_dropout=True)
    module.make_generation_fast_(
        name="x", retain_dropout=True, retain_dropout_modules=["TransformerDecoder"]
    )


def test_quantisation_noise_is_applied(classes):
    module = classes[1](WIDTH, HEADS, self_attention=True, q_noise=0.5)
    query = torch.ones(2, 1, WIDTH)
    first, second = (module(query, query, query)[0] for _ in range(2))
    assert not torch.equal(first, second)
    module.eval()
    first, second = (module(query, query, query)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_fsmha_is_an_incremental_module_of_fairseq():
    from fairseq.incremental_decoding_utils import FairseqIncrementalState

    module = cab.fsmha(cab.LocalAttention)(
        wsize=2, embed_dim=WIDTH, num_heads=HEADS, causal=True
    ).eval()
    assert isinstance(module, FairseqIncrementalState)
    query = torch.randn(5, 2, WIDTH)
    state = {}
    steps = [module(step, incremental_state=state)[0] for step in query.split(1)]
    close([torch.cat(steps)], module(query)[:1])
    module.reorder_incremental_state(state, torch.tensor([1]))
    assert all(t is None or len(t) == 1 for t in state[module.name].values())


def test_fsmha_stands_in_fairseqs_layers_and_can_be_scripted():
    from fairseq.models.transformer import TransformerConfig
    from fairseq.modules.transformer_layer import TransformerDecoderLayerBase

    config = TransformerConfig()
    config.decoder.embed_dim = config.encoder.embed_dim = WIDTH
    config.decoder.attention_heads = HEADS
    layer = TransformerDecoderLayerBase(config).eval()
    local = cab.fsmha(nn.LocalAttention)
    options = {"window_size": 3, "causal": True}
    layer.self_attn = local(WIDTH, HEADS, **options).eval()
    layer.encoder_attn = local(
        WIDTH, HEADS, cross=True, encoder_decoder_attention=True, **options
    ).eval()
    layer.need_attn = False
    scripted = torch.jit.script(layer)
    query, memory = torch.randn(5, 2, WIDTH), torch.randn(7, 2, WIDTH)
    expected = layer(query, memory)[0]
    close([scripted(query, memory)[0]], [expected])
    state = {}
    steps = [layer(step, memory, incremental_state=state)[0] for step in query.split(1)]
    close([torch.cat(steps)], [expected])
