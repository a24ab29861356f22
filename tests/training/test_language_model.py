"""The language model is causal and decodes as it was trained."""

import pytest
import torch

from subquad.models import LanguageModel
from subquad.training.generate import generate

MECHANISMS = [
    ("local", {"window_size": 5}),
    ("softmax", {}),
    ("performer", {}),
    ("cosformer", {"max_length": 64}),
    ("linear", {}),
    ("linear", {"blindspot_size": 4}),
]


def build(attention, arguments, positions="rotary", **changes):
    torch.manual_seed(0)
    settings = {"layers": 2, "width": 32, "heads": 4, "context": 64} | changes
    model = LanguageModel(
        50,
        attention=attention,
        attention_args=arguments,
        positions=positions,
        **settings,
    )
    # Larger weights than the initial ones, so that positions and context matter.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return model.eval()


@pytest.mark.parametrize(("attention", "arguments"), MECHANISMS)
def test_no_position_sees_the_future(attention, arguments):
    model = build(attention, arguments)
    tokens = torch.randint(50, (2, 23))
    other = tokens.clone()
    other[:, 12:] = (other[:, 12:] + 1) % 50
    first, second = model(tokens), model(other)
    assert torch.equal(first[:, :12], second[:, :12])
    assert not torch.equal(first[:, 12:], second[:, 12:])


@pytest.mark.parametrize("positions", ["rotary", "learned", "none"])
@pytest.mark.parametrize(("attention", "arguments"), MECHANISMS)
def test_steps_equal_the_whole(attention, arguments, positions):
    model = build(attention, arguments, positions)
    tokens = torch.randint(50, (2, 23))
    expected = model(tokens)
    state = {}
    parts = [model(tokens[:, :9], state)]
    parts += [model(tokens[:, i : i + 1], state) for i in range(9, 23)]
    torch.testing.assert_close(torch.cat(parts, 1), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("positions", ["rotary", "learned"])
def test_order_matters(positions):
    model = build("softmax", {}, positions, layers=1)
    tokens = torch.tensor([[1, 2, 3, 4]])
    swapped = torch.tensor([[2, 1, 3, 4]])
    difference = (model(tokens) - model(swapped))[0, -1].abs().max()
    assert difference > 1e-3
    blind = build("softmax", {}, "none", layers=1)
    torch.testing.assert_close(blind(tokens)[0, -1], blind(swapped)[0, -1])


@pytest.mark.parametrize(("attention", "arguments"), MECHANISMS)
def test_generation_is_greedy_full_decoding(attention, arguments):
    model = build(attention, arguments)
    tokens = torch.randint(50, (7,))
    generated = list(generate(model, tokens, 20, temperature=0))
    for token in generated:
        assert token == int(model(tokens[None])[0, -1].argmax())
        tokens = torch.cat([tokens, torch.tensor([token])])


def test_generation_draws_by_seed_among_the_likeliest():
    model = build("softmax", {})
    prompt = torch.tensor([3])

    def draw(seed, top_k):
        generator = torch.Generator().manual_seed(seed)
        return list(
            generate(
                model, prompt, 30, temperature=2.0, top_k=top_k, generator=generator
            )
        )

    assert draw(1, 0) == draw(1, 0) != draw(2, 0)
    assert draw(1, 1) == list(generate(model, prompt, 30, temperature=0))
    tokens = prompt
    for token in draw(1, 3):
        assert token in model(tokens[None])[0, -1].topk(3).indices
        tokens = torch.cat([tokens, torch.tensor([token])])


def test_weights_are_tied():
    model = build("softmax", {})
    model.zero_grad()
    model(torch.tensor([[1, 2]])).sum().backward()
    # Tokens that were not read have a gradient from the output layer.
    assert model.embedding.weight.grad[40].abs().sum() > 0
    shapes = [p.shape for p in model.parameters()]
    assert shapes.count(torch.Size([50, 32])) == 1


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="positions must be one of rotary, learned"):
        build("softmax", {}, "absolute")
    with pytest.raises(IndexError):
        build("softmax", {}, "learned", context=4)(torch.zeros(1, 5, dtype=int))
