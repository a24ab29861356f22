import json
import signal
from statistics import fmean, stdev

import pytest

from subquad import UnsupportedPattern, cli, nn
from subquad.benchmarks import quality
from subquad.nn import registry
from subquad.training.errors import CommandError
from subquad.training.lm import Trainer

TINY = (
    "--layers 1 --width 16 --heads 2 --context 32 --batch 2 --steps 4 --threads 1 "
    "--device cpu"
).split()


@pytest.fixture
def bench(tmp_path):
    """Runs the command on a small text; exit code and JSON."""
    text = tmp_path / "text.txt"
    text.write_text("".join(f"{n} green bottles. Är? " for n in range(100)), "utf-8")

    def run(*words):
        path = tmp_path / "quality.json"
        options = ["--text", str(text), *TINY, "--json", str(path), *words]
        code = cli.main(["bench", "quality", *options])
        return code, json.loads(path.read_text()) if path.exists() else None

    return run


def test_every_causal_mechanism_has_the_same_budget(bench, capsys):
    code, records = bench("--seeds", "3,4", "--window-size", "5")
    assert code == 0
    runs = records["runs"]
    names = list(nn.mechanisms())
    assert [(run["seed"], run["attention"]) for run in runs] == [
        (seed, name) for seed in (3, 4) for name in names
    ]
    given = {c["attention"]: c["attention_args"] for c in records["configs"]}
    assert given["local"] == {"window_size": 5}
    budget = {(c["steps"], c["batch"], c["context"]) for c in records["configs"]}
    assert budget == {(4, 2, 32)}
    bits = {
        name: [run["bits_per_character"] for run in runs if run["attention"] == name]
        for name in names
    }
    assert len(set(bits["local"])) == 2  # the seed counts

    lines = capsys.readouterr().out.splitlines()
    assert "256 tokens in 4 steps each" in lines[0]
    cells = {line.split()[0]: line for line in lines[2 : 2 + len(names)]}
    for name in names:
        mean = f"{fmean(bits[name]):.4f} ± {stdev(bits[name]):.4f}"
        assert f"{mean}  {min(bits[name]):.4f}  {max(bits[name]):.4f}" in cells[name]
    pairs = [a - b for a, b in zip(bits["local"], bits["softmax"], strict=True)]
    assert f"{fmean(pairs):+.4f} ± {stdev(pairs):.4f}" in cells["local"]


def test_an_interruption_prints_what_is_finished(bench, monkeypatch, capsys):
    step, steps = Trainer._train_step, []

    def interrupted(trainer, model):
        step(trainer, model)
        steps.append(1)
        if len(steps) == 10:  # in the third run
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Trainer, "_train_step", interrupted)
    code, records = bench()
    assert code == 130
    assert records["interrupted"]
    assert [run["seed"] for run in records["runs"]] == [0, 0]
    printed = capsys.readouterr()
    assert "interrupted: only what finished is counted" in printed.out
    assert "--resume" not in printed.err


def test_a_mechanism_that_cannot_be_causal_is_left_out(bench, monkeypatch, capsys):
    class Both(nn.LocalAttention):
        names = ("both",)

        def __init__(self, *sizes, causal=False, **options):
            if causal:
                raise UnsupportedPattern("Both: no causal form")
            super().__init__(*sizes, **options)

    monkeypatch.setitem(registry.MODULE_REGISTRY, "Both", Both)
    code, records = bench("--seeds", "0")
    assert code == 0
    assert records["left_out"] == {"both": "Both: no causal form"}
    names = {run["attention"] for run in records["runs"]}
    assert names == {*nn.mechanisms()} - {"both"}
    assert "- both: left out: Both: no causal form" in capsys.readouterr().out
    assert bench("--attention", "both")[0] == 2  # asked for
    assert "subquad: Both: no causal form" in capsys.readouterr().err


def test_a_run_that_fails_does_not_lose_the_others(bench, monkeypatch, capsys):
    step = Trainer._train_step

    def diverging(trainer, model):
        if trainer.config.attention == "softmax":
            raise CommandError("the training loss is nan")
        step(trainer, model)

    monkeypatch.setattr(Trainer, "_train_step", diverging)
    code, records = bench("--seeds", "0,1")
    assert code == 0
    others = [name for name in nn.mechanisms() if name != "softmax"]
    assert [run["attention"] for run in records["runs"]] == others * 2
    assert records["left_out"] == {"softmax": "the training loss is nan"}
    assert "- softmax: left out: the training loss is nan" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--attention", "locl"], "unknown mechanism 'locl', did you mean 'local'"),
        (["--windw-size", "9"], "did you mean '--window-size'"),
        (["--seeds", "0,0"], "expected different numbers of at least 0, got '0,0'"),
        (["--seeds", "x"], "expected different numbers of at least 0, got 'x'"),
        (["--steps", "0"], "--steps: must be at least 1, got 0"),
        (["--text", "nowhere"], "nowhere: cannot read: No such file"),
        (["--json", "no/x.json"], "cannot write no/x.json: No such file"),
        (["--seed", "1"], "unknown option '--seed'; did you mean '--seeds'?"),
        (["--threads", "-1"], "--threads: expected a positive number, got '-1'"),
    ],
)
def test_bad_arguments(bench, capsys, words, message):
    code, records = bench(*words)
    assert (code, records) == (2, None)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert message in err


def test_one_run_has_no_spread():
    assert quality._mean([1.25]) == "1.2500 ± 0.0000"
