"""The CAB surface against vectors that the original produced."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from subquad.compat import cab
from subquad.compat.cab import performer

GOLDEN = Path(__file__).parent.parent / "golden" / "cab"
MANIFEST = json.loads((GOLDEN / "manifest.json").read_text())
CLASSES = {"MultiheadAttention", "LocalAttention", "Performer", "CosformerAttention"}
CASES = {c["name"]: c for c in MANIFEST["cases"] if c.get("class") in CLASSES}
PARALLEL = [name for name, case in CASES.items() if not case.get("incremental")]
INCREMENTAL = [name for name, case in CASES.items() if case.get("incremental")]


def load(name):
    case = CASES[name]
    return case, load_file(GOLDEN / case["file"])


def prefixed(tensors, prefix):
    return {
        key.removeprefix(prefix): tensor
        for key, tensor in tensors.items()
        if key.startswith(prefix)
    }


def build(case, tensors):
    cls = getattr(cab, case["class"])
    if case.get("fsmha"):
        cls = cab.fsmha(cls)
    module = cls(**case["ctor"])
    module.load_state_dict(prefixed(tensors, "param."), strict=True)
    if "in.eval_proj" in tensors:
        assert module.eval_proj.shape == tensors["in.eval_proj"].shape
        module.eval_proj.copy_(tensors["in.eval_proj"])
    module.causal = module.causal or "causal_forced" in case["name"]
    return module.train(case["mode"] == "train")


def close(actual, expected, atol=2e-5):
    torch.testing.assert_close(actual.to(expected), expected, atol=atol, rtol=1e-5)


def test_every_case_of_the_modules_is_run():
    assert len(PARALLEL) == 23
    assert len(INCREMENTAL) == 8


@pytest.mark.parametrize("name", PARALLEL)
def test_parallel(name, monkeypatch):
    case, tensors = load(name)
    module = build(case, tensors)
    inputs = prefixed(tensors, "in.")
    inputs.pop("eval_proj", None)
    directions = inputs.pop("proj", None)
    if directions is not None:

        def draw(heads, features, width, orthogonal, like):
            assert directions.shape == (heads, features, width)
            assert not orthogonal
            return directions

        monkeypatch.setattr(performer, "draw_directions", draw)
    keep = inputs.pop("dropout_keep", None)
    if keep is not None:
        rate = case["ctor"]["dropout"]

        def dropout(weights, p, training):
            assert weights.shape == keep.shape
            assert (p, training) == (rate, True)
            return weights * keep / (1 - rate)

        monkeypatch.setattr(torch.nn.functional, "dropout", dropout)
    for key in ("query", "key", "value"):
        if key in inputs:
            inputs[key].requires_grad_()
    if name == "cosformer_left_product":
        output, weights = module.left_product(**inputs), None
    else:
        output, weights = module(**inputs, **case["forward_kwargs"])
    close(output, tensors["out.output"])
    loss = (output * tensors["gradout.output"]).sum()
    assert (weights is not None) == ("out.attn_weights" in tensors)
    if weights is not None:
        close(weights, tensors["out.attn_weights"])
    if "gradout.attn_weights" in tensors:
        loss = loss + (weights * tensors["gradout.attn_weights"]).sum()
    loss.backward()
    for key, expected in prefixed(tensors, "grad.in.").items():
        close(inputs[key].grad, expected, 1e-4)
    parameters = dict(module.named_parameters())
    for key, expected in prefixed(tensors, "grad.param.").items():
        close(parameters[key].grad, expected, 1e-4)
    for key in case["params_without_grad"]:
        assert parameters[key].grad is None, key


@pytest.mark.parametrize("name", INCREMENTAL)
def test_incremental(name):
    case, tensors = load(name)
    module = build(case, tensors)
    inputs = prefixed(tensors, "in.")
    query, mask = inputs["query"], inputs.get("key_padding_mask")
    options = case["forward_kwargs"]
    state = {}
    for t in range(query.size(0)):
        order = inputs.get(f"new_order.before_step{t}")
        if order is not None:
            module.reorder_incremental_state(state, order)
        token = query[t : t + 1]
        key = inputs.get("key", token)
        step_mask = mask
        if mask is not None and "key" not in inputs:
            step_mask = mask[:, t : t + 1]
        if options["batch_first"]:
            token, key = token.transpose(0, 1), key.transpose(0, 1)
        output, _ = module(
            token,
            key,
            key,
            key_padding_mask=step_mask,
            incremental_state=state,
            **options,
        )
        if options["batch_first"]:
            output = output.transpose(0, 1)
        close(output, tensors["out.step"][t : t + 1])
    buffer = module._get_input_buffer(state)
    for key, expected in prefixed(tensors, "out.state.").items():
        close(buffer[key], expected)
    if "out.parallel" in tensors:
        close(module(query)[0], tensors["out.parallel"])


def test_local_attention_alike_by_the_fused_operator():
    case, tensors = load("local_causal")
    module = build(case, tensors)
    query = tensors["in.query"].requires_grad_()
    output, weights = module(query, need_weights=False)
    assert weights is None
    close(output, tensors["out.output"])


def test_upgrade_state_dict():
    tensors = load_file(GOLDEN / "fsmha_upgrade_state_dict.safetensors")
    state_dict = prefixed(tensors, "in.")
    module = cab.fsmha(cab.MultiheadAttention)(embed_dim=8, num_heads=2)
    module.upgrade_state_dict_named(state_dict, "dec.attn")
    expected = prefixed(tensors, "out.")
    assert state_dict.keys() == expected.keys()
    for key, tensor in expected.items():
        torch.testing.assert_close(state_dict[key], tensor, atol=0, rtol=0)
