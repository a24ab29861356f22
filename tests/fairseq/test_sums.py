"""Mechanisms that decode with sums, in all places of a transformer."""

import pytest
import torch

from tests.fairseq.test_beam_search import BEAM, open_search, worst_difference
from tests.fairseq.test_script import STEPS, Greedy, load, through_a_file
from tests.fairseq.util import LM_SIZES, SIZES, TRAINING, plugin, run

OPTIONS = {
    "performer": {"approx_attn_dim": 8},
    "cosformer": {"act_fun": "elu", "max_length": 64},
    "linear": {"eps": 0.01},
}
PLACES = ("encoder_self_attention", "decoder_self_attention", "cross_attention")


def flags(mechanism, places=PLACES):
    """Words that choose the mechanism and its options in these places."""
    words = []
    for place in places:
        flag = f"--{place.replace('_', '-')}"
        words += [flag, mechanism]
        for name, value in OPTIONS[mechanism].items():
            words += [f"{flag}-{name.replace('_', '-')}", str(value)]
    return words


@pytest.fixture(scope="module", params=OPTIONS)
def trained(corpus, tmp_path_factory, request):
    """A mechanism, and the checkpoint of a translation model that has it only."""
    folder = tmp_path_factory.mktemp(request.param)
    run(
        "train",
        *plugin(corpus.pairs, *SIZES, *flags(request.param), *TRAINING),
        *("--max-tokens", 500, "--max-update", 10, "--save-dir", folder),
    )
    return request.param, folder / "checkpoint_last.pt"


def test_flags_are_saved(trained):
    mechanism, checkpoint = trained
    saved = torch.load(checkpoint, weights_only=True)
    model = saved["cfg"]["model"]
    for place in PLACES:
        assert getattr(model, place) == mechanism
        for name, value in OPTIONS[mechanism].items():
            assert getattr(model, f"{place}_{name}") == value
    directions = [key for key in saved["model"] if key.endswith("eval_proj")]
    assert len(directions) == (6 if mechanism == "performer" else 0)


def test_scores_are_those_of_one_forward(trained):
    worst, count = worst_difference(open_search(trained[1]))
    assert count > 12 * BEAM * 2
    assert worst < 1e-5


def test_a_scripted_transformer_decodes(trained, corpus, tmp_path):
    model, task, batch = load(trained[1], corpus)
    greedy = Greedy(model).eval()
    loaded = through_a_file(greedy, tmp_path / "greedy.pt")
    source = batch["net_input"]["src_tokens"]
    assert source.eq(task.source_dictionary.pad()).any()
    inputs = (source, batch["net_input"]["src_lengths"])
    begin = task.target_dictionary.eos()
    with torch.no_grad():
        tokens = loaded(*inputs, begin, STEPS)
        assert torch.equal(tokens, greedy(*inputs, begin, STEPS))
        # Decoded in steps, taught at once.
        logits = loaded.teach(*inputs, tokens[:, :-1])
        torch.testing.assert_close(
            logits, greedy.teach(*inputs, tokens[:, :-1]), atol=1e-5, rtol=1e-5
        )
        assert torch.equal(logits.argmax(-1), tokens[:, 1:])


@pytest.mark.parametrize("mechanism", OPTIONS)
def test_a_language_model_trains_and_generates(corpus, tmp_path, capsys, mechanism):
    run(
        "train",
        *plugin(corpus.text, "--task", "language_modeling", *LM_SIZES, *TRAINING),
        *flags(mechanism, ["decoder_self_attention"]),
        *("--tokens-per-sample", 32, "--max-tokens", 256, "--max-update", 2),
        *("--save-dir", tmp_path),
    )
    capsys.readouterr()
    run(
        "generate",
        *plugin(corpus.text, "--task", "language_modeling", "--cpu"),
        *("--path", tmp_path / "checkpoint_last.pt", "--gen-subset", "test"),
        *("--beam", 2, "--max-len-b", 4, "--prefix-size", 2, "--batch-size", 20),
        *("--sample-break-mode", "eos", "--num-workers", 0),
        "--skip-invalid-size-inputs-valid-test",
    )
    assert "H-0" in capsys.readouterr().out
