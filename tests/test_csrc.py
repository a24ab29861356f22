"""Builds the GoogleTest programs against the installed library and runs them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from subquad import info

SOURCES = Path(__file__).parent / "csrc"
HEADERS = [Path("/usr/include"), Path("/usr/local/include")]


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """The build folder with test_common and test_ops."""
    for tool in ("cmake", "ninja", "c++"):
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool}")
    if not any((folder / "gtest" / "gtest.h").exists() for folder in HEADERS):
        pytest.skip("needs GoogleTest (Debian: libgtest-dev)")
    build = tmp_path_factory.mktemp("csrc")
    configure = [
        "cmake",
        f"-S{SOURCES}",
        f"-B{build}",
        "-GNinja",
        f"-Dsubquad_DIR={info.cmake_dir()}",
        f"-DPython_EXECUTABLE={sys.executable}",
    ]
    for command in (configure, ["cmake", "--build", str(build)]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    return build


@pytest.mark.parametrize("program", ["test_common", "test_ops"])
def test_googletest(programs, program):
    done = subprocess.run(
        [str(programs / program)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"GTEST_COLOR": "no"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[  PASSED  ]" in done.stdout
