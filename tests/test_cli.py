"""The command line: what it prints, and one line with exit code 2 for bad input."""

import os
import re
import signal
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from subquad.cli import main
from subquad.training.checkpoint import load

TINY = (
    "--layers 1 --width 16 --heads 2 --context 32 --batch 2 --steps 3 "
    "--eval-interval 2 --device cpu --no-tensorboard"
).split()


def error_line(capsys, *arguments):
    """Run a command that must fail, and return its only line of output."""
    assert main(list(map(str, arguments))) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "subquad", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("To be, or not to be: that is the question.\n" * 60)
    return path


@pytest.fixture
def trained(text, tmp_path, capsys):
    folder = tmp_path / "run"
    assert main(["train", "lm", str(text), *TINY, "--out", str(folder)]) == 0
    capsys.readouterr()
    return folder


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "give one of info, train, generate, bench"),
        ("trian", "invalid choice: 'trian'"),
        ("train", "give one of lm"),
        ("train vit", "invalid choice: 'vit'"),
        ("generate", "required: CHECKPOINT"),
        ("train lm a.txt b.txt", "unknown argument 'b.txt'"),
        ("train lm --windw-size 9", "did you mean '--window-size'"),
        ("train lm --layer 9", "did you mean '--layers'"),
        ("train lm --attention softmax --window-size 9", "option '--window-size'"),
        ("train lm --attention locl", "'locl', did you mean 'local'"),
        ("train lm --layers two", "invalid int value: 'two'"),
        ("train lm --layers 0", "--layers: must be at least 1, got 0"),
        ("train lm --lr 0", "--lr: must be above 0, got 0.0"),
        ("train lm --lr nan", "--lr: must be above 0, got nan"),
        ("train lm --dropout 1", "--dropout: must be below 1, got 1.0"),
        ("train lm --dtype int8", "invalid choice: 'int8'"),
        ("generate nowhere --device tpu9", "--device: cannot use 'tpu9'"),
        ("train lm --resume nowhere", "nowhere: no such checkpoint"),
        ("generate nowhere", "nowhere: no such checkpoint"),
    ],
)
def test_bad_commands(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert message in error_line(capsys, *arguments.split())


def test_bad_text(capsys, tmp_path):
    path = tmp_path / "text.txt"
    command = ("train", "lm", path, "--out", tmp_path / "run", *TINY)
    assert "cannot read: No such file" in error_line(capsys, *command)
    path.write_bytes(b"")
    assert "the text is empty" in error_line(capsys, *command)
    path.write_bytes(b"caf\xe9 " * 100)
    assert "not utf-8 text" in error_line(capsys, *command)
    path.write_text("short")
    assert "too short: 5 tokens" in error_line(capsys, *command)
    assert not (tmp_path / "run").exists()
    assert "Is a directory" in error_line(capsys, "train", "lm", tmp_path, *TINY)


def test_settings_that_the_mechanism_refuses(capsys, text, tmp_path):
    command = ("train", "lm", text, *TINY, "--out", tmp_path / "run")
    line = error_line(capsys, *command, "--heads", "3")
    assert "num_heads" in line
    line = error_line(capsys, *command, "--window-size", "0")
    assert "window_size" in line


def test_an_unwritable_folder(capsys, text):
    line = error_line(capsys, "train", "lm", text, *TINY, "--out", text / "run")
    assert "cannot create: Not a directory" in line


def test_a_run_prints_its_result(text, tmp_path, capsys):
    folder = tmp_path / "run"
    assert main(["train", "lm", str(text), *TINY, "--out", str(folder)]) == 0
    out, err = capsys.readouterr()
    assert [line.split()[0] for line in err.splitlines()] == ["local:"] * 2
    assert out.splitlines()[1].split()[0] == "local"
    assert out.endswith(f"subquad generate {folder}\n")


def test_bad_checkpoints(capsys, trained, tmp_path):
    path = trained / "last.safetensors"
    content = path.read_bytes()
    for command in (("generate",), ("train", "lm", "--resume")):
        path.write_bytes(content[:-10])
        assert "not a whole safetensors" in error_line(capsys, *command, trained)
        save_file({"weight": torch.zeros(3)}, path)
        assert "not a checkpoint of" in error_line(capsys, *command, trained)
        header = {"format": "subquad.lm", "format_version": "1"}
        save_file({"weight": torch.zeros(3)}, path, header)
        assert "damaged settings" in error_line(capsys, *command, path)
        header |= {"config": '{"text": "x"}'}
        save_file({"model.weight": torch.zeros(3)}, path, header)
        assert error_line(capsys, *command, path)
    assert "no such checkpoint" in error_line(capsys, "generate", tmp_path)


def test_generate(capsys, trained):
    command = ["generate", str(trained), "--prompt", "To be", "--device", "cpu"]
    assert main([*command, "--length", "40"]) == 0
    first = capsys.readouterr().out
    assert first.startswith("To be")
    assert main([*command, "--length", "40"]) == 0
    assert capsys.readouterr().out == first
    assert main([*command, "--length", "40", "--seed", "1"]) == 0
    assert capsys.readouterr().out != first
    assert main([*command, "--length", "0", "--top-k", "5"]) == 0
    assert capsys.readouterr().out == "To be\n"
    best = str(trained / "best.safetensors")
    assert main(["generate", best, "--temperature", "0", "--length", "3"]) == 0


def test_generate_refuses_bad_prompts(capsys, text, tmp_path):
    folder = tmp_path / "chars"
    options = [*TINY, "--tokens", "char", "--positions", "learned", "--out", folder]
    assert main(["train", "lm", str(text), *map(str, options)]) == 0
    capsys.readouterr()
    line = error_line(capsys, "generate", folder, "--prompt", "€")
    assert "'€' is not among" in line
    line = error_line(capsys, "generate", folder, "--prompt", "")
    assert "at least one character" in line
    assert "learned positions" in error_line(capsys, "generate", folder)
    line = error_line(capsys, "generate", folder, "--top-k", "-1")
    assert "--top-k: must be at least 0, got -1" in line


def test_without_arguments_two_mechanisms_are_compared(tmp_path):
    out = tmp_path / "both"
    result = run("train", "lm", *TINY, "--out", out)
    assert result.returncode == 0, result.stderr
    header, local, softmax = result.stdout.splitlines()[:3]
    assert re.split(r"\s{2,}", header.strip())[:3] == [
        "attention",
        "bits/char",
        "tokens/s",
    ]
    for name, row in (("local", local), ("softmax", softmax)):
        assert row.split()[0] == name
        assert 0 < float(row.split()[1]) < 20
        assert (out / name / "last.safetensors").exists()
        assert f"\n{name}:\n  | The " in result.stdout


def test_interrupting_a_comparison_ends_it(tmp_path):
    out = tmp_path / "both"
    command = ["train", "lm", *TINY, "--steps", "1000000", "--out", str(out)]
    process = subprocess.Popen(
        [sys.executable, "-m", "subquad", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    for line in process.stderr:
        if "step 2," in line:  # the first run trains, and has a checkpoint
            break
    os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert output == ""
    assert "Traceback" not in errors
    assert f"to go on: subquad train lm --resume {out / 'local'}" in errors
    assert load(out / "local").metadata["state"]["step"] >= 2
    assert not (out / "softmax").exists()


def test_a_failure_in_a_comparison_is_told_once(tmp_path):
    result = run("train", "lm", *TINY, "--heads", "3", "--out", tmp_path / "both")
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("subquad: ")


def test_a_closed_pipe_is_no_error(trained):
    program = f"{sys.executable} -m subquad generate {trained} --length 2000"
    command = f"{program} | head -c 9"
    result = subprocess.run(["bash", "-c", command], capture_output=True, check=False)
    assert len(result.stdout) == 9
    assert result.stderr == b""


def test_info(capsys):
    assert main(["info"]) == 0
    assert torch.__version__ in capsys.readouterr().out


def test_help(capsys):
    for command in ([], ["train"], ["train", "lm"], ["generate"]):
        with pytest.raises(SystemExit) as ended:
            main([*command, "--help"])
        assert ended.value.code == 0
        assert f"usage: {' '.join(['subquad', *command])}" in capsys.readouterr().out
