"""What is said where fairseq is not, and that the core can do without."""

import re
import subprocess
import sys
from importlib import metadata

import pytest

from subquad import _fairseq, cli


def test_fairseq_is_absent(monkeypatch, capsys):
    monkeypatch.setattr(_fairseq.importlib.util, "find_spec", lambda name: None)
    remedy = "fairseq is not installed: pip install 'subquad[fairseq]'"
    with pytest.raises(ImportError, match=re.escape(f"subquad.fairseq: {remedy}")):
        _fairseq.require()
    assert cli.main(["info", "--fairseq-user-dir"]) == 2
    assert capsys.readouterr().err == f"subquad: --fairseq-user-dir: {remedy}\n"


def test_fairseq_is_the_release_that_does_not_run(monkeypatch):
    monkeypatch.setattr(metadata, "version", lambda name: "0.12.2")
    with pytest.raises(ImportError, match=r"0\.12\.2 is not supported.*subquad\[fair"):
        _fairseq.require()


def test_fairseq_does_not_import(monkeypatch):
    def fail(name):
        raise ValueError("mutable default")

    monkeypatch.setattr(_fairseq.importlib, "import_module", fail)
    with pytest.raises(ImportError, match=r"ValueError: mutable default.*subquad\[f"):
        _fairseq.require()


def test_the_core_does_not_import_fairseq():
    code = "import sys, subquad; sys.exit('fairseq' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
