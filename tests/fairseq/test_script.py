"""The whole transformer in TorchScript: saved, loaded, and decoding there."""

import pytest
import torch
from torch import Tensor, nn

from tests.fairseq.util import plugin  # noqa: F401  (skips without fairseq)

STEPS = 9


class Greedy(nn.Module):
    """The decoding loop; a dict that enters TorchScript is copied at the door."""

    def __init__(self, model):
        super().__init__()
        self.encoder = model.encoder
        self.decoder = model.decoder

    def forward(self, source: Tensor, lengths: Tensor, begin: int, steps: int):
        memory = self.encoder(source, lengths)
        state: dict[str, dict[str, Tensor | None]] = {}
        tokens = torch.full([source.size(0), 1], begin)
        for _ in range(steps):
            logits = self.decoder(tokens, memory, incremental_state=state)[0]
            tokens = torch.cat((tokens, logits[:, -1:].argmax(-1)), 1)
        return tokens

    @torch.jit.export
    def teach(self, source: Tensor, lengths: Tensor, tokens: Tensor):
        return self.decoder(tokens, self.encoder(source, lengths))[0]


def load(checkpoint, corpus, **overrides):
    from fairseq.checkpoint_utils import load_model_ensemble_and_task

    models, _, task = load_model_ensemble_and_task(
        [str(checkpoint)], arg_overrides=overrides
    )
    task.load_dataset("test")
    dataset = task.dataset("test")
    batch = dataset.collater([dataset[i] for i in range(6)])
    return models[0].eval(), task, batch


def through_a_file(module, path):
    torch.jit.save(torch.jit.script(module), path)
    return torch.jit.load(path)


@pytest.mark.parametrize("drop_in", [False, True])
def test_a_scripted_transformer_decodes(translator, corpus, tmp_path, drop_in):
    model, task, batch = load(translator, corpus)
    if drop_in:  # in the place of fairseq's, which is in none of the others
        from subquad.fairseq import MultiheadAttention

        for layer in model.decoder.layers:
            attention = MultiheadAttention(32, 2, encoder_decoder_attention=True)
            attention.load_state_dict(layer.encoder_attn.state_dict())
            layer.encoder_attn = attention.eval()
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


def test_a_scripted_beam_search(translator, corpus, tmp_path):
    from fairseq.sequence_generator import SequenceGenerator

    model, task, batch = load(translator, corpus)
    generator = SequenceGenerator(
        [model], task.target_dictionary, beam_size=3, max_len_b=8
    )
    loaded = through_a_file(generator, tmp_path / "generator.pt")
    sample = {"net_input": {k: v for k, v in batch["net_input"].items()}}
    del sample["net_input"]["prev_output_tokens"]
    with torch.no_grad():
        expected, actual = generator(sample), loaded(sample)
    assert len(actual) == 6
    for one, other in zip(actual, expected, strict=True):
        assert len(one) == 3
        for mine, theirs in zip(one, other, strict=True):
            assert torch.equal(mine["tokens"], theirs["tokens"])
            torch.testing.assert_close(
                mine["positional_scores"],
                theirs["positional_scores"],
                atol=1e-5,
                rtol=1e-5,
            )
