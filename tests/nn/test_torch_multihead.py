"""``TorchMultiheadAttention`` beside the module it takes the place of."""

import copy
from inspect import signature

import pytest
import torch
from torch import nn

from subquad.nn import TorchMultiheadAttention

WIDTH, HEADS, L, S, B = 24, 4, 5, 7, 3
BUILDS = {
    "plain": {},
    "without biases": {"bias": False},
    "other widths": {"kdim": 12, "vdim": 20},
    "learned tokens": {"add_bias_kv": True, "add_zero_attn": True},
    "batch first": {"batch_first": True},
}
CALLS = {
    "plain": {},
    "padding": {"key_padding_mask": torch.arange(S) > torch.tensor([[6], [3], [4]])},
    "added padding": {"key_padding_mask": torch.randn(B, S)},
    "mask": {"attn_mask": torch.arange(S) > torch.arange(L)[:, None]},
    "mask of heads": {"attn_mask": torch.randn(B * HEADS, L, S)},
    "both": {
        "key_padding_mask": torch.arange(S) > torch.tensor([[6], [3], [4]]),
        "attn_mask": torch.arange(S) > torch.arange(L)[:, None],
    },
    "both added": {
        "key_padding_mask": torch.randn(B, S),
        "attn_mask": torch.randn(B * HEADS, L, S),
    },
    "bool mask, added padding": {
        "key_padding_mask": torch.randn(B, S),
        "attn_mask": torch.arange(S) > torch.arange(L)[:, None],
    },
}


def pair(**options):
    """Both modules, from the same seed."""
    modules = []
    for cls in (nn.MultiheadAttention, TorchMultiheadAttention):
        torch.manual_seed(0)
        modules.append(cls(WIDTH, HEADS, **options))
    return modules


def inputs(module):
    generator = torch.Generator().manual_seed(1)
    tensors = [
        torch.randn(length, B, width, generator=generator)
        for length, width in ((L, WIDTH), (S, module.kdim), (S, module.vdim))
    ]
    return [t.transpose(0, 1) if module.batch_first else t for t in tensors]


def close(actual, expected):
    assert (actual is None) == (expected is None)
    if actual is not None:
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


def test_signatures():
    for name in ("__init__", "forward"):
        theirs, ours = (
            [
                (parameter.name, parameter.default)
                for parameter in signature(getattr(cls, name)).parameters.values()
            ]
            for cls in (nn.MultiheadAttention, TorchMultiheadAttention)
        )
        assert theirs == ours


@pytest.mark.parametrize("build", BUILDS)
def test_parameters_are_the_same_from_a_seed(build):
    theirs, ours = pair(**BUILDS[build])
    for method in ("state_dict", "named_parameters"):
        one, other = (dict(getattr(m, method)()) for m in (theirs, ours))
        assert list(one) == list(other)
        assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("build", BUILDS)
def test_state_dicts_go_both_ways(build):
    theirs, ours = pair(**BUILDS[build])
    for source, target in ((theirs, ours), (ours, theirs)):
        for parameter in source.parameters():
            nn.init.normal_(parameter, std=0.3)
        target.load_state_dict(copy.deepcopy(source.state_dict()), strict=True)
        values = inputs(source)
        close(target(*values)[0], source(*values)[0])


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("build", BUILDS)
def test_results(build, call):
    theirs, ours = pair(**BUILDS[build])
    values = inputs(ours)
    for weights in (
        {"need_weights": False},
        {"need_weights": True},
        {"need_weights": True, "average_attn_weights": False},
    ):
        expected = theirs(*values, **CALLS[call], **weights)
        actual = ours(*values, **CALLS[call], **weights)
        close(actual[0], expected[0])
        close(actual[1], expected[1])


@pytest.mark.parametrize("build", ["plain", "batch first"])
def test_one_sequence(build):
    theirs, ours = pair(**BUILDS[build])
    values = torch.randn(L, WIDTH), torch.randn(S, WIDTH), torch.randn(S, WIDTH)
    for options in ({}, {"key_padding_mask": torch.arange(S) > 4}):
        for one, other in zip(
            ours(*values, **options), theirs(*values, **options), strict=True
        ):
            close(one, other)


@pytest.mark.parametrize("build", BUILDS)
def test_gradients(build):
    modules = pair(**BUILDS[build])
    for module in modules:
        output, weights = module(*inputs(module))
        (output.square().sum() + weights[..., 0].sum()).backward()
    for one, other in zip(*(m.parameters() for m in modules), strict=True):
        torch.testing.assert_close(one.grad, other.grad, atol=1e-4, rtol=1e-4)


def test_a_causal_hint_describes_a_mask():
    theirs, ours = pair()
    query = torch.randn(L, B, WIDTH)
    mask = nn.Transformer.generate_square_subsequent_mask(L)
    options = {"attn_mask": mask, "is_causal": True, "need_weights": False}
    close(ours(query, query, query, **options)[0], theirs(*[query] * 3, **options)[0])
    with pytest.raises(ValueError, match="is_causal describes attn_mask"):
        ours(query, query, query, is_causal=True)


@pytest.mark.parametrize("training", [True, False])
def test_inside_pytorchs_transformer(training):
    """Also on the fast path, which reads the parameters past ``forward``."""
    torch.manual_seed(0)
    theirs = nn.Transformer(
        WIDTH, HEADS, 2, 2, 32, dropout=0.0, batch_first=True
    ).train(training)
    ours = copy.deepcopy(theirs)
    replaced = 0
    for layer in [*ours.encoder.layers, *ours.decoder.layers]:
        for name, module in list(layer.named_children()):
            if isinstance(module, nn.MultiheadAttention):
                new = TorchMultiheadAttention(WIDTH, HEADS, batch_first=True)
                new.load_state_dict(module.state_dict())
                setattr(layer, name, new.train(training))
                replaced += 1
    assert replaced == 6
    source, target = torch.randn(B, S, WIDTH), torch.randn(B, L, WIDTH)
    mask = nn.Transformer.generate_square_subsequent_mask(L)
    padding = CALLS["padding"]["key_padding_mask"]
    with torch.set_grad_enabled(training):
        close(
            *(
                model(
                    source,
                    target,
                    tgt_mask=mask,
                    tgt_is_causal=True,
                    src_key_padding_mask=padding,
                    memory_key_padding_mask=padding,
                )
                for model in (ours, theirs)
            )
        )


def test_a_query_without_keys_gives_the_bias():
    _, ours = pair()
    nn.init.normal_(ours.out_proj.bias)
    padding = torch.zeros(B, S, dtype=torch.bool)
    padding[1] = True
    output, weights = ours(*inputs(ours), key_padding_mask=padding)
    assert torch.equal(output[:, 1], ours.out_proj.bias.expand(L, -1))
    assert not weights[1].any()


def test_device_and_dtype():
    module = TorchMultiheadAttention(WIDTH, HEADS, device="meta", dtype=torch.float16)
    for parameter in module.parameters():
        assert parameter.device.type == "meta"
        assert parameter.dtype == torch.float16


@pytest.mark.parametrize("build", ["plain", "other widths"])
def test_scripting_and_compiling(build):
    _, ours = pair(**BUILDS[build])
    values = inputs(ours)
    mask = CALLS["added padding"]["key_padding_mask"]
    expected = ours(*values, mask)
    for module in (torch.jit.script(ours), torch.compile(ours, fullgraph=True)):
        for one, other in zip(module(*values, mask), expected, strict=True):
            close(one, other)
