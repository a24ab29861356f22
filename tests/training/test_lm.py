"""Training: it learns, and it continues exactly after any end."""

import signal
import socket

import pytest
import torch

from subquad.cli import main
from subquad.training.checkpoint import load
from subquad.training.config import ModelConfig
from subquad.training.lm import Trainer, learning_rate
from tests.training.util import INTERRUPTED, TINY, python, records

STEPS = "--steps 8 --eval-interval 4 --log-interval 3 --dropout 0.1".split()


def assert_same_run(first, second):
    """Two runs have the same losses and end in the same state, bit by bit."""
    for event in ("train", "valid"):
        assert records(first, event) == records(second, event)
        assert records(first, event)
    one, other = load(first), load(second)
    assert one.tensors.keys() == other.tensors.keys()
    for name, tensor in one.tensors.items():
        assert torch.equal(tensor, other.tensors[name]), name


@pytest.mark.parametrize("attention", ["local", "softmax"])
def test_training_lowers_the_loss(train, attention):
    options = "--steps 60 --eval-interval 20 --lr 0.02 --warmup 5".split()
    folder = train("--attention", attention, *options)
    bits = [record["bits_per_character"] for record in records(folder, "valid")]
    assert [record["step"] for record in records(folder, "valid")] == [20, 40, 60]
    assert bits[0] > bits[1] > bits[2]
    assert bits[2] < 3.5
    end = records(folder, "end")[-1]
    assert end["bits_per_character"] == bits[2]
    assert end["peak_memory"] >= end["start_memory"] > 0


@pytest.mark.parametrize(
    ("number", "dtype"),
    [
        (signal.SIGINT, "float32"),
        (signal.SIGTERM, "float32"),
        (signal.SIGTERM, "float16"),
    ],
)
def test_a_signal_saves_and_resuming_is_exact(train, monkeypatch, number, dtype):
    options = [*STEPS, "--dtype", dtype]
    whole = train(*options, out="whole")
    step = Trainer._train_step

    def interrupted(trainer, model):
        step(trainer, model)
        if trainer.step == 5:
            signal.raise_signal(number)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_train_step", interrupted)
        part = train(*options, out="part", code=128 + number)
    assert load(part).metadata["state"]["step"] == 5
    assert main(["train", "lm", "--resume", str(part), "--no-tensorboard"]) == 0
    assert_same_run(whole, part)


def test_a_second_interruption_is_immediate(train, monkeypatch):
    def interrupted(trainer, model):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Trainer, "_train_step", interrupted)
    # Where the tests run in the background, SIGINT was ignored from the start.
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        folder = train(*STEPS, code=130)
        assert not (folder / "last.safetensors").exists()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, inherited)


def run_interrupted(text, folder, event, step):
    arguments = ["train", "lm", text, *TINY, *STEPS, "--out", folder]
    return python(INTERRUPTED, event, step, 0, *arguments)


def test_a_killed_run_resumes_exactly(train, text, tmp_path):
    whole = train(*STEPS, out="whole")
    part = tmp_path / "part"
    assert run_interrupted(text, part, "SIGKILL", 7).returncode == -signal.SIGKILL
    assert load(part).metadata["state"]["step"] == 4
    assert records(part, "train")[-1]["step"] == 6
    assert main(["train", "lm", "--resume", str(part), "--no-tensorboard"]) == 0
    assert_same_run(whole, part)


def test_a_full_disk_keeps_the_old_checkpoint(text, tmp_path):
    folder = tmp_path / "run"
    result = run_interrupted(text, folder, "full-disk", 6)
    assert result.returncode == 2
    lines = result.stderr.splitlines()
    assert "cannot write the checkpoint" in lines[-1]
    assert "File too large" in lines[-1]
    assert not any("Traceback" in line for line in lines)
    assert load(folder).metadata["state"]["step"] == 4
    names = {path.name for path in folder.iterdir()}
    assert names == {"best.safetensors", "last.safetensors", "log.jsonl"}


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def torchrun(*arguments):
    return python(
        "-m", "torch.distributed.run", "--nproc-per-node=2",
        "--master-addr=127.0.0.1", f"--master-port={free_port()}", *arguments,
    )  # fmt: skip


def test_two_processes_train_as_one(train, text, tmp_path):
    options = "--steps 6 --eval-interval 3 --log-interval 2".split()
    alone = train(*options, out="alone")
    folder = tmp_path / "two"
    result = torchrun(
        "-m", "subquad", "train", "lm", text, *TINY, *options, "--out", folder
    )
    assert result.returncode == 0, result.stderr
    for event, value in (("train", "loss"), ("valid", "bits_per_character")):
        ours = [record[value] for record in records(folder, event)]
        theirs = [record[value] for record in records(alone, event)]
        assert ours == pytest.approx(theirs, rel=1e-4)
    first, second = load(folder), load(alone)
    assert first.metadata["state"]["world"] == 2
    for name, tensor in first.part("model").items():
        torch.testing.assert_close(
            tensor, second.part("model")[name], atol=1e-3, rtol=1e-2
        )


def test_two_processes_stop_together_and_resume_exactly(text, tmp_path):
    whole, part = tmp_path / "whole", tmp_path / "part"
    command = ["train", "lm", text, *TINY, *STEPS, "--out"]
    assert torchrun("-m", "subquad", *command, whole).returncode == 0
    # Only the second process gets the signal.
    stopped = torchrun(INTERRUPTED, "SIGTERM", 5, 1, *command, part)
    assert stopped.returncode != 0
    assert load(part).metadata["state"]["step"] == 5
    resume = ["train", "lm", "--resume", part, "--no-tensorboard"]
    resumed = torchrun("-m", "subquad", *resume)
    assert resumed.returncode == 0, resumed.stderr
    assert_same_run(whole, part)
    assert main([*map(str, resume), "--steps", "9"]) == 2  # one process, not two


@pytest.mark.parametrize("dtype", ["float64", "bfloat16", "float16"])
def test_other_dtypes_train(train, dtype):
    options = "--steps 30 --lr 0.02 --warmup 5 --eval-interval 15".split()
    folder = train("--dtype", dtype, *options)
    first, last = (r["bits_per_character"] for r in records(folder, "valid"))
    assert last < first
    weights = load(folder).tensors["model.embedding.weight"].dtype
    assert weights == (torch.float64 if dtype == "float64" else torch.float32)


@pytest.mark.parametrize(
    "words",
    [
        "performer --approx-attn-dim 24",
        "cosformer --act-fun elu",
        "linear --eps 0.01",
    ],
)
def test_mechanisms_that_sum_train_and_generate(train, capsys, words):
    options = "--steps 30 --lr 0.02 --warmup 5 --eval-interval 15".split()
    folder = train("--attention", *words.split(), *options)
    first, last = (r["bits_per_character"] for r in records(folder, "valid"))
    assert last < first
    capsys.readouterr()
    command = ["generate", str(folder), "--prompt", "3 green", "--length", "20"]
    assert main(command) == 0
    assert "3 green" in capsys.readouterr().out


def test_a_time_budget_ends_the_run_with_a_checkpoint(train):
    folder = train("--steps", "1000000", "--time-budget", "0.5")
    end = records(folder, "end")[-1]
    assert 0 < end["step"] < 1000000
    assert load(folder).metadata["state"]["step"] == end["step"]
    assert records(folder, "valid")[-1]["step"] == end["step"]


@pytest.mark.parametrize("interval", ["log", "eval"])
def test_a_diverging_run_keeps_its_checkpoint(train, monkeypatch, capsys, interval):
    step = Trainer._train_step

    def diverging(trainer, model):
        step(trainer, model)
        if trainer.step == 5:
            torch.nn.init.constant_(trainer.model.norm.weight, float("nan"))

    monkeypatch.setattr(Trainer, "_train_step", diverging)
    folder = train(
        *"--steps 9 --eval-interval 4 --log-interval 4".split(),
        *(f"--{interval}-interval", "2"),
        code=2,
    )
    assert "lower --lr; the last checkpoint is intact" in capsys.readouterr().err
    assert load(folder).metadata["state"]["step"] == 4
    for tensor in load(folder).part("model").values():
        assert tensor.isfinite().all()


def test_a_finished_run_goes_on_with_more_steps(train, capsys):
    folder = train("--steps", "4")
    resume = ["train", "lm", "--resume", str(folder), "--no-tensorboard"]
    assert main(resume) == 2
    assert "has finished its 4 steps" in capsys.readouterr().err
    assert main([*resume, "--steps", "6"]) == 0
    assert load(folder).metadata["state"]["step"] == 6


def test_a_run_is_not_overwritten(train, capsys):
    folder = train("--steps", "2")
    before = (folder / "last.safetensors").read_bytes()
    train("--steps", "2", code=2)
    assert "has a checkpoint; continue it with --resume" in capsys.readouterr().err
    assert (folder / "last.safetensors").read_bytes() == before


def test_resuming_needs_the_same_run(train, text, capsys):
    folder = train("--steps", "2", "--window-size", "7")
    resume = ["train", "lm", "--resume", str(folder), "--no-tensorboard"]

    def message(*options):
        assert main([*resume, *options]) == 2
        return capsys.readouterr().err

    assert "layers: fixed by the checkpoint at 1, got 3" in message("--layers", "3")
    assert "attention: fixed by the checkpoint" in message("--attention", "softmax")
    assert "attention-args: fixed" in message("--window-size", "9")
    assert "a resumed run stays in" in message("--out", "elsewhere")
    resume[3] = str(folder / "best.safetensors")
    assert "no state to resume" in message("--steps", "4")
    resume[3] = str(folder)
    text.write_text("another text " * 100)
    assert "text must be as in the checkpoint" in message("--steps", "4")


def test_tensorboard_files(train, text, tmp_path, monkeypatch, capsys):
    pytest.importorskip("tensorboard", reason="TensorBoard is optional")
    from tensorboard.backend.event_processing.event_accumulator import (
        EventAccumulator,
    )

    folder = train("--steps", "4", "--log-interval", "2", "--tensorboard")
    events = EventAccumulator(str(folder)).Reload()
    losses = [(event.step, event.value) for event in events.Scalars("train/loss")]
    expected = [(r["step"], r["loss"]) for r in records(folder, "train")]
    assert losses == [(step, pytest.approx(loss)) for step, loss in expected]


def test_tensorboard_is_optional(text, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    tiny = [option for option in TINY if option != "--no-tensorboard"]
    command = ["train", "lm", str(text), *tiny, "--steps", "1", "--out"]
    assert main([*command, str(tmp_path / "one")]) == 0
    assert capsys.readouterr().err.count("no TensorBoard files") == 1
    assert main([*command, str(tmp_path / "two"), "--tensorboard"]) == 2
    assert "TensorBoard is not installed" in capsys.readouterr().err


def test_learning_rate_rises_and_falls():
    config = ModelConfig(steps=100, warmup=10, lr=1.0)
    rates = [learning_rate(config, step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == 1.0
    assert rates[:10] == sorted(rates[:10])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == pytest.approx(0.1, abs=1e-3)
