"""The README's examples run as they stand."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from subquad import info

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.M | re.S)


@pytest.mark.parametrize("index", range(len(blocks("python"))))
def test_python_example(index, tmp_path):
    # TorchScript reads its functions' source, so each example is a file.
    script = tmp_path / "example.py"
    script.write_text(blocks("python")[index], encoding="utf-8")
    ran = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize("index", range(len(blocks("cpp"))))
def test_cpp_example(index, tmp_path):
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("needs g++")
    source, program = tmp_path / "main.cpp", tmp_path / "main"
    source.write_text(blocks("cpp")[index], encoding="utf-8")
    command = [compiler, str(source), *info.cxx_flags(), "-o", str(program)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    ran = subprocess.run([str(program)], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == "[1, 8, 1024, 64]"
