import json

import pytest
import torch

from subquad import UnsupportedPattern, cli, nn
from subquad.benchmarks.probes import CHECKS, DTYPES, PATTERNS, probe
from subquad.nn import registry


@pytest.fixture
def register(monkeypatch):
    def add(cls):
        monkeypatch.setitem(registry.MODULE_REGISTRY, cls.__name__, cls)
        return probe(cls.names[0])

    return add


def test_what_is_there_is_right(tmp_path, capsys):
    table, answers = tmp_path / "support.md", tmp_path / "support.json"
    words = ["--markdown", str(table), "--json", str(answers)]
    assert cli.main(["bench", "patterns", *words]) == 0
    found = json.loads(answers.read_text())["mechanisms"]
    assert list(found) == list(nn.mechanisms())
    for of in found.values():
        assert list(of) == [*PATTERNS, *CHECKS, *DTYPES]
        assert {answer["status"] for answer in of.values()} == {"yes"}
    assert found["local"]["decoding"]["detail"] == "bounded"
    assert found["softmax"]["decoding"]["detail"] == "growing"
    head, rule, *rows = table.read_text().splitlines()
    assert head.startswith("| mechanism | self | causal self | cross | causal cross |")
    assert rule.count("---") == head.count("|") - 1
    lines = dict(zip(found, rows, strict=True))
    assert lines["local"].endswith("| float64, float32, bfloat16, float16 |")
    assert "✓ growing" in lines["softmax"]
    assert "local" in capsys.readouterr().out


class Wrong(nn.LocalAttention):
    """Right but for what a test spoils."""

    names = ("wrong",)


def spoiled(**methods):
    return type("Spoiled", (Wrong,), {"names": ("spoiled",), **methods})


def test_a_leak_is_wrong(register):
    def attend(self, q, k, v, *rest):
        output, weights = Wrong._attend(self, q, k, v, *rest)
        # A trace of the mean over all tokens.
        return output + 1e-3 * v.mean(2, keepdim=True), weights

    answers = register(spoiled(_attend=attend))
    for pattern, answer in answers.items():
        if pattern == "causal self":
            assert answer.status == "wrong"
            assert "the past moves when the future changes" in answer.reason
        elif pattern == "self":
            assert answer.status == "yes"


def test_a_past_that_depends_on_the_length_is_wrong(register):
    def attend(self, q, k, v, *rest):
        output, weights = Wrong._attend(self, q, k, v, *rest)
        return output * (1 + 1e-3 * q.shape[2]), weights

    answers = register(spoiled(_attend=attend))
    for pattern in ("causal self", "causal cross"):
        assert "the past moves when the future is cut off" in answers[pattern].reason


def test_padding_that_is_seen_is_wrong(register):
    def rows(self, input, padding, batch_first):
        return Wrong._rows(self, input, None, batch_first)

    answer = register(spoiled(_rows=rows))["padding"]
    assert answer.status == "wrong"
    assert "a padded row differs from the row alone" in answer.reason


def test_decoding_that_forgets_is_wrong(register):
    def step(self, q, k, v, *rest):
        rest[2].pop("prev_key", None)
        return Wrong._step(self, q, k, v, *rest)

    answer = register(spoiled(_step=step))["decoding"]
    assert (answer.status, answer.detail) == ("wrong", "")
    assert "decoding differs from the parallel form" in answer.reason


def test_what_is_random_is_not_deterministic(register):
    def attend(self, q, *rest):
        output, weights = Wrong._attend(self, q, *rest)
        return output + 1e-7 * torch.rand(1, generator=generator), weights

    generator = torch.Generator()
    answer = register(spoiled(_attend=attend))["deterministic"]
    assert (answer.status, answer.reason) == ("wrong", "two runs differ")


def test_what_is_refused_says_why(register, capsys):
    def refuse(self, *sizes, causal=False, cross=False, **options):
        if causal or cross:
            raise UnsupportedPattern("Spoiled: noncausal self-attention only")
        Wrong.__init__(self, *sizes, **options)

    answers = register(spoiled(__init__=refuse))
    status = {name: answer.status for name, answer in answers.items()}
    assert [status[p] for p in PATTERNS] == ["yes", "no", "no", "no"]
    assert status["decoding"] == "no"
    assert (status["padding"], status["deterministic"]) == ("yes", "yes")
    assert cli.main(["bench", "patterns", "spoiled"]) == 0
    printed = capsys.readouterr().out
    reason = "UnsupportedPattern: Spoiled: noncausal self-attention only"
    assert f"- spoiled, causal self: {reason}" in printed


def test_nothing_works(register):
    def refuse(self, *sizes, **options):
        raise ValueError("never")

    answers = register(spoiled(__init__=refuse))
    assert {answer.status for answer in answers.values()} == {"no"}
    assert answers["float32"].reason == "no pattern works"


def test_probes_leave_random_numbers_and_modes_alone(register):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    register(Wrong)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("sofmax", "unknown mechanism 'sofmax'; did you mean 'softmax'?"),
        ("--markdwn x", "did you mean '--markdown'?"),
        ("--json no/x.json", "cannot write no/x.json: No such file"),
    ],
)
def test_bad_arguments(capsys, words, message):
    assert cli.main(["bench", "patterns", *words.split()]) == 2
    assert message in capsys.readouterr().err
