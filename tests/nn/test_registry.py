"""Mechanisms by name, and their options on a command line."""

import argparse

import pytest
import torch

from subquad import nn
from subquad.compat import cab
from subquad.nn.registry import Registry


def parse(cls, words):
    parser = cls.add_attn_specific_args(argparse.ArgumentParser())
    return parser.parse_args(words, namespace=nn.NestedNamespace())


def test_mechanisms_have_short_names_and_aliases():
    assert nn.mechanisms() == {
        "cosformer": nn.CosformerAttention,
        "linear": nn.LinearAttention,
        "local": nn.LocalAttention,
        "performer": nn.Performer,
        "softmax": nn.MultiheadAttention,
    }
    for name in ("local", "window", "LocalAttention"):
        assert nn.get_mechanism(name) is nn.LocalAttention
    for name in ("softmax", "multihead", "mha", "MultiheadAttention"):
        assert nn.get_mechanism(name) is nn.MultiheadAttention


def test_an_unknown_mechanism_names_the_nearest():
    with pytest.raises(ValueError, match="'lokal', did you mean 'local'"):
        nn.get_mechanism("lokal")
    with pytest.raises(ValueError, match=r"known are .*local, softmax"):
        nn.get_mechanism("zzz")


@pytest.mark.parametrize("surface", [nn, cab])
def test_registry(surface):
    assert surface.get_cls("LocalAttention") is surface.LocalAttention
    assert set(surface.AVAILABLE_ATTENTIONS) == set(surface.MODULE_REGISTRY)
    with pytest.raises(KeyError):
        surface.get_cls("local")
    with pytest.raises(ValueError, match=r"duplicate class \(LocalAttention\)"):
        surface.register_cls(surface.LocalAttention)
    with pytest.raises(ValueError, match="Linear must extend AbstractAttention"):
        surface.register_cls(torch.nn.Linear)


def test_a_registered_class_is_found():
    registry = Registry()

    @registry.register
    class Mine(nn.AbstractAttention):
        pass

    assert registry.get("Mine") is Mine
    assert registry.available == ["Mine"]


def test_nested_arguments():
    arguments = parse(nn.LocalAttention, ["--window-size", "7"])
    assert arguments.attn_args.window_size == 7
    assert nn.mechanism_options(arguments) == {"window_size": 7}
    default = parse(nn.LocalAttention, [])
    assert default.attn_args.window_size == nn.LocalAttention(8, 2).window_size
    assert nn.mechanism_options(parse(nn.MultiheadAttention, [])) == {}


def test_module_from_args():
    arguments = parse(nn.LocalAttention, ["--window-size", "7"])
    module = nn.module_from_args("local", arguments, 32, 4, causal=True)
    assert isinstance(module, nn.LocalAttention)
    assert (module.window_size, module.causal) == (7, True)
    with pytest.raises(TypeError, match="unknown option 'window_size'"):
        nn.module_from_args("softmax", arguments, 32, 4)


def test_nested_namespace():
    namespace = nn.NestedNamespace()
    setattr(namespace, "a.b.c", 1)
    setattr(namespace, "a.d", 2)
    namespace.e = 3
    assert (namespace.a.b.c, namespace.a.d, namespace.e) == (1, 2, 3)
    with pytest.raises(AttributeError):
        _ = namespace.f


def test_remove_argument():
    parser = argparse.ArgumentParser()
    parser = cab.LocalAttention.add_attn_specific_args(parser)
    for name in ("--wsize", "attn_args.causal"):
        nn.remove_argument(parser, name)
    assert "wsize" not in parser.format_help()
    with pytest.raises(SystemExit):
        parser.parse_args(["--wsize", "3"])
    nn.add_nested_argument(parser, "--wsize", type=int, default=9)
    namespace = parser.parse_args([], namespace=nn.NestedNamespace())
    assert vars(namespace.attn_args) == {"wsize": 9}
    nn.remove_argument(parser, "--absent")
