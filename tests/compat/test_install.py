"""A surface under the import name of its project."""

import argparse
import importlib
import io
import sys
import types

import pytest
import torch

from subquad import compat
from subquad.compat import cab, installation


@pytest.fixture(autouse=True)
def clean():
    yield
    compat.uninstall("cab")
    sys.modules.pop("efficient_attention", None)


def test_install_and_uninstall():
    with pytest.raises(ImportError):
        importlib.import_module("efficient_attention")
    for _ in range(2):
        compat.install("cab")
        module = importlib.import_module("efficient_attention")
        assert module.LocalAttention is cab.LocalAttention
        inner = importlib.import_module("efficient_attention.local_attention")
        assert inner.LocalAttention is cab.LocalAttention
    for _ in range(2):
        compat.uninstall("cab")
        assert "efficient_attention" not in sys.modules


def test_a_second_claim_is_refused(monkeypatch):
    monkeypatch.setitem(installation._CLAIMS, "other", "efficient_attention")
    compat.install("cab")
    with pytest.raises(RuntimeError, match=r"'other' claims .* belongs to cab"):
        compat.install("other")


def test_the_original_is_not_replaced():
    original = types.ModuleType("efficient_attention")
    sys.modules["efficient_attention"] = original
    with pytest.raises(RuntimeError, match="belongs to a module that was imported"):
        compat.install("cab")
    compat.uninstall("cab")
    assert sys.modules["efficient_attention"] is original


def test_unknown_project():
    with pytest.raises(ValueError, match="unknown project 'cap', did you mean 'cab'"):
        compat.install("cap")


@pytest.mark.parametrize("weights_only", [True, False])
def test_checkpoints_with_the_projects_namespace_load(weights_only, monkeypatch):
    compat.install("cab")
    namespace = cab.NestedNamespace()
    setattr(namespace, "attn_args.wsize", 9)
    buffer = io.BytesIO()
    with monkeypatch.context() as patch:
        patch.setattr(cab.NestedNamespace, "__module__", "efficient_attention")
        torch.save({"args": namespace}, buffer)
    buffer.seek(0)
    with torch.serialization.safe_globals([argparse.Namespace]):
        loaded = torch.load(buffer, weights_only=weights_only)
    assert loaded["args"].attn_args.wsize == 9
    assert type(loaded["args"]) is cab.NestedNamespace
