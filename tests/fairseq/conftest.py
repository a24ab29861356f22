"""Data and models that several tests look at; made once."""

import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> SimpleNamespace:
    """Folders of a parallel text and of one for language models."""
    from tests.fairseq.util import run, write_corpus

    folder: Path = tmp_path_factory.mktemp("corpus")
    write_corpus(folder)
    pairs, text = folder / "pairs", folder / "text"
    common = ["--workers", 1, "--thresholdsrc", 3]
    run(
        "preprocess",
        *("--source-lang", "src", "--target-lang", "tgt", "--joined-dictionary"),
        *("--trainpref", folder / "train", "--testpref", folder / "test"),
        *("--destdir", pairs, *common),
    )
    run(
        "preprocess",
        *("--only-source", "--destdir", text, *common),
        *("--trainpref", folder / "train.src", "--testpref", folder / "test.src"),
    )
    return SimpleNamespace(pairs=pairs, text=text)


@pytest.fixture(scope="session")
def translator(corpus, tmp_path_factory) -> Path:
    """Checkpoint of a translation model, local attention everywhere, 40 updates."""
    from tests.fairseq.util import PLACES, SIZES, TRAINING, plugin, run

    folder: Path = tmp_path_factory.mktemp("translator")
    run(
        "train",
        *plugin(corpus.pairs, *SIZES, *PLACES, *TRAINING),
        *("--max-tokens", 500, "--max-update", 40, "--save-dir", folder),
    )
    return folder / "checkpoint_last.pt"


@pytest.fixture(autouse=True)
def _quiet():
    """What fairseq itself does with this torch and this hydra is not our matter."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
