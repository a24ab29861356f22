"""What beam search says of its hypotheses is what one full forward says of them."""

import pytest
import torch

from subquad.nn import AbstractAttention
from tests.fairseq.util import plugin  # noqa: F401  (skips without fairseq)

BEAM = 4


def open_search(checkpoint):
    """Model, task and a batch with padding."""
    from fairseq.checkpoint_utils import load_model_ensemble_and_task

    models, _, task = load_model_ensemble_and_task([str(checkpoint)])
    model = models[0].eval()
    # Decisive enough for beams to change places.
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "attn" in name and name.endswith("weight"):
                parameter.mul_(2)
    task.load_dataset("test")
    dataset = task.dataset("test")
    batch = dataset.collater([dataset[i] for i in range(12)])
    source = batch["net_input"]["src_tokens"]
    assert source.eq(task.source_dictionary.pad()).any()
    return model, task, batch


@pytest.fixture(scope="module")
def search(corpus, translator):
    return open_search(translator)


def worst_difference(search):
    """Over all tokens of all hypotheses, and how many tokens there are."""
    from fairseq.sequence_generator import SequenceGenerator

    model, task, batch = search
    target = task.target_dictionary
    generator = SequenceGenerator([model], target, beam_size=BEAM, max_len_b=12)
    worst, count = 0.0, 0
    with torch.no_grad():
        found = generator.generate([model], batch)
        for row, hypotheses in enumerate(found):
            source = batch["net_input"]["src_tokens"][row : row + 1]
            source = source[:, source[0] != target.pad()]
            for hypothesis in hypotheses:
                tokens = hypothesis["tokens"]
                previous = tokens.roll(1)
                previous[0] = target.eos()
                length = torch.tensor([source.size(1)])
                logits = model(source, length, previous[None])[0][0]
                scores = logits.log_softmax(-1).gather(1, tokens[:, None])[:, 0]
                difference = scores - hypothesis["positional_scores"]
                worst = max(worst, difference.abs().max().item())
                count += len(tokens)
    assert len(found) == batch["nsentences"]
    assert all(len(each) == BEAM for each in found)
    return worst, count


def test_scores_are_those_of_one_forward(search):
    worst, count = worst_difference(search)
    assert count > 12 * BEAM * 3
    assert worst < 1e-5


def test_a_broken_reorder_is_seen(search, monkeypatch):
    monkeypatch.setattr(
        AbstractAttention, "reorder_incremental_state", lambda self, state, order: state
    )
    # One sentence: where one of several ends, the state would not fit the rest.
    model, task, _ = search
    dataset = task.dataset("test")
    longest = max(range(12), key=lambda i: len(dataset[i]["source"]))
    alone = dataset.collater([dataset[longest]])
    assert worst_difference((model, task, alone))[0] > 1e-3
