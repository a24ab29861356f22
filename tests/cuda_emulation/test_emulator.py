"""Builds the CUDA emulator with its seeded bugs and runs its own tests."""

import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCES = Path(__file__).parent
HEADERS = [Path("/usr/include"), Path("/usr/local/include")]


def run(command):
    return subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"GTEST_COLOR": "no"},
    )


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """The compiled tests."""
    for tool in ("cmake", "ninja", "g++", "addr2line"):
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool}")
    if platform.libc_ver()[0] != "glibc":
        pytest.skip("the emulator's fibres need glibc")
    if not any((folder / "gtest" / "gtest.h").exists() for folder in HEADERS):
        pytest.skip("needs GoogleTest (Debian: libgtest-dev)")
    build = tmp_path_factory.mktemp("cuda_emulation")
    configure = ["cmake", "-GNinja", "-DCMAKE_CXX_COMPILER=g++"]
    for command in (
        [*configure, f"-S{SOURCES}", f"-B{build}"],
        ["cmake", "--build", build, "--target", "test_emulator"],
    ):
        done = run(command)
        assert done.returncode == 0, done.stdout + done.stderr
    return build / "test_emulator"


def test_emulator_reports_seeded_bugs(program):
    done = run([program])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[  PASSED  ]" in done.stdout
