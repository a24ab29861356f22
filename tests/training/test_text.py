"""Reading text, tokens, and the order of training windows."""

import pytest
import torch

from subquad.training.errors import CommandError
from subquad.training.text import (
    PYTHON_TOPICS,
    Vocabulary,
    WindowSampler,
    read_text,
)

MIXED = "naïve € 𝄞 text\n"


def test_python_carries_english_text():
    text = read_text(PYTHON_TOPICS)
    assert len(text) > 300_000
    assert "assert" in text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read: No such file"),
        (b"", "the text is empty"),
        (b"ok \xff\xfe", r"not utf-8 text \(invalid start byte at byte 3\)"),
    ],
)
def test_unusable_text_is_refused(tmp_path, content, message):
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CommandError, match=message):
        read_text(str(path))


def test_other_encodings(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes(b"na\xefve\r\n")
    assert read_text(str(path), "latin-1") == "naïve\r\n"
    with pytest.raises(CommandError, match="unknown encoding 'latin-99'"):
        read_text(str(path), "latin-99")


@pytest.mark.parametrize("kind", ["byte", "char"])
def test_tokens_spell_the_text(kind):
    vocabulary = Vocabulary.of(MIXED, kind)
    tokens = vocabulary.encode(MIXED)
    decode = vocabulary.decoder()
    assert "".join(decode(token) for token in tokens.tolist()) == MIXED
    assert int(tokens.max()) < len(vocabulary)
    assert vocabulary.count_characters(tokens) == len(MIXED)
    assert vocabulary.encode("").numel() == 0


def test_a_cut_character_decodes_to_a_replacement():
    decode = Vocabulary().decoder()
    euro = "€".encode()
    assert "".join(decode(byte) for byte in [*euro[:2], ord("a")]) == "\ufffda"


def test_unknown_characters_are_named():
    vocabulary = Vocabulary.of("abd", "char")
    for text in ("ac", "az", "a€", "\udcff"):
        with pytest.raises(CommandError, match="is not among the 3 characters"):
            vocabulary.encode(text)


def sampler(**changes):
    settings = {"context": 10, "batch": 4, "seed": 3} | changes
    return WindowSampler(torch.arange(1000), **settings)


def test_an_epoch_visits_every_window_once():
    windows = sampler()
    steps = windows.windows // 4
    starts = [start for step in range(steps) for start in windows.starts(step)]
    assert len(set(starts)) == len(starts) == steps * 4
    assert len({start % 10 for start in starts}) == 1
    assert max(starts) + 11 <= 1000
    following = [s for step in range(steps, 2 * steps) for s in windows.starts(step)]
    assert following != starts


def test_order_depends_on_seed_and_step_alone():
    forward, fresh = sampler(), sampler()
    expected = [forward.starts(step) for step in range(60)]
    assert fresh.starts(59) == expected[59]
    assert fresh.starts(10) == expected[10]
    assert sampler(seed=4).starts(10) != expected[10]


def test_processes_share_each_step():
    whole = sampler().starts(7)
    shares = [sampler(rank=rank, world=2).starts(7) for rank in range(2)]
    assert sorted(shares[0] + shares[1]) == sorted(whole)
    assert not set(shares[0]) & set(shares[1])


def test_targets_are_the_next_tokens():
    inputs, targets = sampler()(5)
    assert inputs.shape == (4, 10)
    assert torch.equal(inputs + 1, targets)


@pytest.mark.parametrize("length", [11, 12, 25])
def test_short_text_is_repeated(length):
    windows = WindowSampler(torch.arange(length), context=10, batch=8, seed=0)
    for step in range(20):
        inputs, targets = windows(step)
        assert inputs.shape == targets.shape == (8, 10)
