"""A small corpus, and fairseq's command line called in this process."""

import os
import random
import re
import sys
from pathlib import Path
from pydoc_data.topics import topics
from types import SimpleNamespace

import pytest

from subquad import _fairseq
from subquad.nn import AbstractAttention, LocalAttention

reason = _fairseq.missing()
if reason is not None:
    pytest.skip(reason, allow_module_level=True)

# A window in each place, narrower than the sentences are long.
PLACES = (
    "--encoder-self-attention local --encoder-self-attention-window-size 2 "
    "--decoder-self-attention local --decoder-self-attention-window-size 3 "
    "--cross-attention local --cross-attention-window-size 4"
).split()
SIZES = (
    "--arch subquad_transformer_tiny --encoder-embed-dim 32 --share-all-embeddings"
).split()
LM_SIZES = (
    "--arch subquad_transformer_lm_gpt2_tiny --decoder-embed-dim 32 "
    "--decoder-attention-heads 2 --share-decoder-input-output-embed"
).split()
TRAINING = (
    "--cpu --num-workers 0 --optimizer adam --lr 5e-3 --log-format simple "
    "--no-epoch-checkpoints --disable-validation --seed 1"
).split()


def run(main: str, *words: object) -> None:
    """Call an entry point, ``preprocess``, ``train``, ``generate`` or ``eval_lm``."""
    import importlib

    module = importlib.import_module(f"fairseq_cli.{main}")
    argv = sys.argv
    sys.argv = [f"fairseq-{main}", *map(str, words)]
    try:
        module.cli_main()
    finally:
        sys.argv = argv


def plugin(*words: object) -> list[object]:
    """Arguments with the library's ``--user-dir``."""
    return [*words, "--user-dir", _fairseq.user_dir()]


def write_corpus(folder: Path) -> None:
    """Sentences of Python's own documentation, and the same words backwards."""
    words = re.findall(r"[a-z]+", " ".join(map(topics.get, sorted(topics))).lower())
    draw = random.Random(0)
    sentences = []
    begin = 0
    while len(sentences) < 440:
        end = begin + draw.randint(3, 10)
        sentences.append(words[begin:end])
        begin = end
    for name, part in (("train", sentences[:400]), ("test", sentences[400:])):
        lines = {
            "src": [" ".join(sentence) for sentence in part],
            "tgt": [" ".join(reversed(sentence)) for sentence in part],
        }
        for side, text in lines.items():
            (folder / f"{name}.{side}").write_text("\n".join(text) + os.linesep)


def count_calls(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Count what local attention is asked for from here on."""
    calls = SimpleNamespace(full=0, steps=0, reorders=0)
    forward = LocalAttention.forward
    reorder = AbstractAttention.reorder_incremental_state

    def counted_forward(self, *inputs, **options):
        if options.get("incremental_state") is None:
            calls.full += 1
        else:
            calls.steps += 1
        return forward(self, *inputs, **options)

    def counted_reorder(self, *inputs):
        calls.reorders += 1
        return reorder(self, *inputs)

    monkeypatch.setattr(LocalAttention, "forward", counted_forward)
    monkeypatch.setattr(AbstractAttention, "reorder_incremental_state", counted_reorder)
    return calls
