"""Training, resuming, generating and evaluating through fairseq's entry points."""

import argparse
import math
import re
import shutil

import pytest
import torch

from tests.fairseq.util import (
    LM_SIZES,
    PLACES,
    SIZES,
    TRAINING,
    count_calls,
    plugin,
    run,
)

UPDATES = 4
MODULES = 6  # two layers each of encoder and decoder, three places


def load(path):
    """A checkpoint, as torch loads it by default."""
    return torch.load(path, weights_only=True)


def updates(checkpoint):
    return checkpoint["optimizer_history"][-1]["num_updates"]


def test_translation_trains_resumes_and_generates(
    corpus, tmp_path, monkeypatch, capsys
):
    words = [
        *plugin(corpus.pairs, *SIZES, *PLACES, *TRAINING),
        *("--max-tokens", 500, "--save-dir", tmp_path),
    ]
    calls = count_calls(monkeypatch)
    run("train", *words, "--max-update", UPDATES)
    assert calls.full == UPDATES * MODULES
    last = tmp_path / "checkpoint_last.pt"
    first = load(last)
    assert updates(first) == UPDATES

    run("train", *words, "--max-update", 2 * UPDATES)
    assert calls.full == 2 * UPDATES * MODULES
    second = load(last)
    assert updates(second) == 2 * UPDATES
    key = "decoder.layers.1.encoder_attn.q_proj.weight"
    assert not torch.equal(first["model"][key], second["model"][key])

    assert calls.steps == calls.reorders == 0
    capsys.readouterr()
    run(
        "generate",
        *plugin(corpus.pairs, "--cpu", "--path", last, "--beam", 2),
        *("--max-len-b", 5, "--batch-size", 20, "--num-workers", 0),
    )
    assert calls.full > 2 * UPDATES * MODULES  # the encoder
    assert calls.steps > 0
    assert calls.reorders > 0
    output = capsys.readouterr().out
    assert len(re.findall(r"^H-\d+", output, re.MULTILINE)) == 40


def test_flags_are_saved(translator):
    saved = load(translator)["cfg"]["model"]
    assert isinstance(saved, argparse.Namespace)
    assert saved.encoder_self_attention == "local"
    assert saved.encoder_self_attention_window_size == 2
    assert saved.decoder_self_attention_window_size == 3
    assert saved.cross_attention_window_size == 4


def test_language_model_trains_evaluates_and_generates(
    corpus, tmp_path, monkeypatch, capsys, caplog
):
    calls = count_calls(monkeypatch)
    run(
        "train",
        *plugin(corpus.text, "--task", "language_modeling", *LM_SIZES, *TRAINING),
        *("--decoder-self-attention", "local"),
        *("--decoder-self-attention-window-size", 4),
        *("--tokens-per-sample", 32, "--max-tokens", 256, "--max-update", UPDATES),
        *("--save-dir", tmp_path),
    )
    assert calls.full == UPDATES * 2
    last = tmp_path / "checkpoint_last.pt"
    caplog.clear()
    with caplog.at_level("INFO"):
        run(
            "eval_lm",
            *plugin(corpus.text, "--cpu", "--path", last, "--gen-subset", "test"),
            *("--tokens-per-sample", 32, "--max-tokens", 256, "--num-workers", 0),
        )
    assert calls.full > UPDATES * 2
    found = re.search(r"Perplexity: ([\d.]+)", caplog.text)
    assert found and math.isfinite(float(found[1]))
    assert calls.steps == 0
    run(
        "generate",
        *plugin(corpus.text, "--task", "language_modeling", "--cpu", "--path", last),
        *("--beam", 2, "--max-len-b", 4, "--prefix-size", 2, "--batch-size", 20),
        *("--sample-break-mode", "eos", "--num-workers", 0),
        *("--skip-invalid-size-inputs-valid-test", "--gen-subset", "test"),
    )
    assert calls.steps > 0
    assert calls.reorders > 0
    assert "H-0" in capsys.readouterr().out


def test_stock_checkpoints_load_and_go_back(corpus, translator, tmp_path):
    """The parameters have fairseq's names: softmax becomes local, and back."""
    from fairseq.checkpoint_utils import load_model_ensemble

    overrides = {
        name: None
        for name in vars(load(translator)["cfg"]["model"])
        if re.match("(encoder_self|decoder_self|cross)_attention", name)
    }
    local = load_model_ensemble([str(translator)])[0][0]
    stock = load_model_ensemble([str(translator)], arg_overrides=overrides)[0][0]
    assert type(stock.decoder.layers[0].self_attn).__module__.startswith("fairseq.")
    assert type(local.decoder.layers[0].self_attn).__module__.startswith("subquad.")
    assert set(stock.state_dict()) == set(local.state_dict())
    local.load_state_dict(stock.state_dict())


@pytest.mark.parametrize("name", ["transformer_iwslt_de_en", "transformer_lm_gpt"])
def test_architectures_are_those_of_fairseq(name):
    from fairseq.models import ARCH_CONFIG_REGISTRY

    from subquad.fairseq import register

    register()
    register()
    ours, theirs = argparse.Namespace(), argparse.Namespace()
    ARCH_CONFIG_REGISTRY[f"subquad_{name}"](ours)
    ARCH_CONFIG_REGISTRY[name](theirs)
    assert vars(theirs).items() <= vars(ours).items()


def test_a_run_without_choices_is_fairseqs_own(corpus, tmp_path, monkeypatch):
    calls = count_calls(monkeypatch)
    options = [*TRAINING, "--max-tokens", 500, "--max-update", 2]
    models = []
    for prefix, words in (("subquad_", plugin()), ("", [])):
        folder = tmp_path / f"run_{prefix}"
        sizes = [word.replace("subquad_", prefix) for word in SIZES]
        run(
            "train",
            *(corpus.pairs, *sizes, *options, "--save-dir", folder, *words),
        )
        models.append(load(folder / "checkpoint_last.pt")["model"])
        shutil.rmtree(folder)
    assert calls.full == 0
    assert all(torch.equal(models[0][key], models[1][key]) for key in models[1])
