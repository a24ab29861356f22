"""A small text, and a way to train on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from subquad.cli import main
from tests.training.util import TINY


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Compute with one thread: fast for small models, and as ``util.python`` does."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A file whose text a small model learns quickly."""
    path = tmp_path / "text.txt"
    path.write_text("".join(f"{n} green bottles. Är? " for n in range(200)), "utf-8")
    return path


@pytest.fixture
def train(text: Path, tmp_path: Path) -> Callable[..., Path]:
    """Train in this process; returns the folder of the run."""

    def run(*options: str, out: str = "run", code: int = 0) -> Path:
        folder = tmp_path / out
        arguments = ["train", "lm", str(text), *TINY, "--out", str(folder), *options]
        assert main(arguments) == code
        return folder

    return run
