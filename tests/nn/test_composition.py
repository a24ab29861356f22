"""Scripting, compilation, export and copies of the modules."""

import copy
import io
import pickle

import pytest
import torch

from tests.nn.util import FEW, PATTERNS, close, decode

LENGTHS = (7, 11, 16, 29)
CAUSAL = [pattern for pattern in FEW if pattern.causal and not pattern.cross]


def padding_of(L, B=3):
    mask = torch.zeros(B, L, dtype=torch.bool)
    mask[0, 1:3] = mask[1, 0] = mask[2, L - 2 :] = True
    return mask


@pytest.mark.parametrize("pattern", FEW, ids=str)
def test_script(pattern):
    module = pattern.build()
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(module), buffer)
    buffer.seek(0)
    scripted = torch.jit.load(buffer)
    for L in LENGTHS:
        query, key = pattern.inputs(L)
        mask = padding_of(len(key))
        padded = {"key_padding_mask": mask, "need_weights": pattern.weighs}
        for options in ({}, padded):
            expected, expected_weights = module(query, key, **options)
            output, weights = scripted(query, key, **options)
            close(output, expected)
            assert (weights is None) == (expected_weights is None)
            if weights is not None:
                close(weights, expected_weights)


class Decoder(torch.nn.Module):
    """A decoding loop to script whole: a state does not outlive a scripted call."""

    def __init__(self, attention: torch.nn.Module) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, query: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
        state: dict[str, dict[str, torch.Tensor | None]] = {}
        outputs: list[torch.Tensor] = []
        for t in range(query.size(0)):
            if t == 4:
                self.attention.reorder_incremental_state(state, order)
            step = query[t : t + 1]
            outputs.append(self.attention(step, incremental_state=state)[0])
        return torch.cat(outputs)


@pytest.mark.parametrize("pattern", CAUSAL, ids=str)
def test_script_of_a_decoding_loop(pattern):
    decoder = Decoder(pattern.build())
    query, _ = pattern.inputs(9)
    order = torch.tensor([1, 1, 0])
    expected = decoder(query, order)
    close(torch.jit.script(decoder)(query, order), expected)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("pattern", FEW, ids=str)
def test_one_compilation_for_four_lengths(pattern, padded):
    torch._dynamo.reset()
    module = pattern.build(**pattern.steady).train()
    compilations = []

    def backend(graph, inputs):
        compilations.append(graph)
        return graph.forward

    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend=backend)
    for L in LENGTHS:
        query, key = pattern.inputs(L, L + 2, 3)
        options = {"key_padding_mask": padding_of(len(key))} if padded else {}
        expected, _ = module(query, key, **options)
        output, _ = compiled(query, key, **options)
        close(output, expected)
        output.sum().backward()
    assert len(compilations) == 1


@pytest.mark.slow
@pytest.mark.parametrize("pattern", CAUSAL, ids=str)
def test_inductor(pattern):
    torch._dynamo.reset()
    module = pattern.build()
    compiled = torch.compile(module, fullgraph=True, dynamic=True)
    for L in LENGTHS[:2]:
        query, _ = pattern.inputs(L)
        mask = padding_of(L)
        expected, _ = module(query, key_padding_mask=mask)
        close(compiled(query, key_padding_mask=mask)[0], expected)


@pytest.mark.parametrize("pattern", CAUSAL, ids=str)
def test_a_compiled_step_decodes(pattern):
    torch._dynamo.reset()
    module = pattern.build()
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend="eager")
    query, _ = pattern.inputs(9)
    close(decode(compiled, query, [4, *[1] * 5]), module(query)[0])


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("pattern", FEW, ids=str)
def test_export(pattern, padded):
    module = pattern.build()
    query, key = pattern.inputs(9, 8)
    inputs = {"query": query, "key": key}
    length = torch.export.Dim("L", min=2, max=4096)
    other = torch.export.Dim("S", min=2, max=4096)
    sizes = {"query": {0: length}, "key": {0: other if pattern.cross else length}}
    if padded:
        inputs["key_padding_mask"] = padding_of(len(key))
        sizes["key_padding_mask"] = {1: sizes["key"][0]}
    program = torch.export.export(module, (), inputs, dynamic_shapes=sizes).module()
    for L in LENGTHS:
        query, key = pattern.inputs(L, L + 3)
        inputs = {"query": query, "key": key}
        if padded:
            inputs["key_padding_mask"] = padding_of(len(key))
        close(program(**inputs)[0], module(**inputs)[0])


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_copies_compute_the_same(pattern):
    module = pattern.build()
    query, key = pattern.inputs()
    expected, _ = module(query, key)
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert twin.name != module.name
        assert twin.name.startswith(type(module).__name__)
        assert torch.equal(twin(query, key)[0], expected)
        assert twin.state_dict().keys() == module.state_dict().keys()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_state_dict_has_fairseqs_keys(pattern, bias):
    module = pattern.build(bias=bias)
    kinds = ("weight", "bias") if bias else ("weight",)
    letters = ("q", "k", "v", "out")
    expected = {f"{letter}_proj.{kind}" for letter in letters for kind in kinds}
    own = {"eval_proj"} if getattr(module, "random_kind", "") else set()
    if ("proj_method", "mlp-fourier") in pattern.options:
        own = {"random_proj", "phi.0.weight", "phi.0.bias"}
        own = {f"feature_proj.{name}" for name in own}
    expected |= own
    assert set(module.state_dict()) == expected
