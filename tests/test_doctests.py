"""The examples in docstrings."""

import doctest
import importlib
import pkgutil

import pytest
import torch

import subquad
from subquad import _fairseq

SKIPPED = ("subquad.benchmarks", "subquad.__main__", "subquad.libsubquad")
if _fairseq.missing():
    SKIPPED = (*SKIPPED, "subquad.fairseq")
MODULES = [
    module.name
    for module in pkgutil.walk_packages(subquad.__path__, "subquad.")
    if not module.name.startswith(SKIPPED)
]


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name):
    module = importlib.import_module(name)
    result = doctest.testmod(module, extraglobs={"torch": torch, "subquad": subquad})
    assert result.failed == 0


def test_there_are_examples():
    finder = doctest.DocTestFinder()
    examples = sum(
        len(test.examples)
        for name in MODULES
        for test in finder.find(importlib.import_module(name))
    )
    assert examples >= 10
