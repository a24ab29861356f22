"""Builds the operators' CUDA code for the emulator, once a session."""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import subquad  # noqa: F401  (its schemas are copied)

SOURCES = Path(__file__).parent
# Of threads, of blocks, and a seed; 0: forward, 1: reversed, 2: shuffled.
ORDERS = [(0, 0, 0), (1, 1, 0), (2, 2, 11)]


@pytest.fixture(scope="session")
def emulated(tmp_path_factory):
    """``torch.ops.subquad_emulated``: the CUDA operators on CPU tensors.

    A call raises where the emulator has something to report. The environment
    variable SUBQUAD_EMULATED_BUILD may name a folder that keeps the build.
    """
    for tool in ("cmake", "ninja", "g++"):
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool}")
    if platform.libc_ver()[0] != "glibc":
        pytest.skip("the emulator's fibres need glibc")
    kept = os.environ.get("SUBQUAD_EMULATED_BUILD")
    build = Path(kept) if kept else tmp_path_factory.mktemp("operators")
    configure = [
        "cmake",
        f"-S{SOURCES}",
        f"-B{build}",
        "-GNinja",
        "-DCMAKE_CXX_COMPILER=g++",
        f"-DPython_EXECUTABLE={sys.executable}",
    ]
    compile_ = ["cmake", "--build", str(build), "--target", "subquad_emulated"]
    for command in (configure, compile_):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    torch.ops.load_library(str(build / "libsubquad_emulated.so"))
    return torch.ops.subquad_emulated


def bits(tensor):
    """The tensor as integers, so that NaN equals itself and 0.0 not -0.0."""
    if not tensor.is_floating_point():
        return tensor
    sizes = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.contiguous().view(sizes[tensor.element_size()])


@pytest.fixture
def in_every_order(emulated):
    """Calls a function with each order of threads and blocks.

    Fresh tensors are full of NaN, so that what a kernel does not write is seen.
    Returns the first result; all of them are bitwise equal.
    """

    def run(function):
        results = []
        for order in ORDERS:
            emulated.set_order(*order)
            result = function()
            results.append(result if isinstance(result, tuple) else (result,))
        for other in results[1:]:
            for first, second in zip(results[0], other, strict=True):
                assert torch.equal(bits(first), bits(second))
        return results[0]

    torch.use_deterministic_algorithms(True)
    yield run
    torch.use_deterministic_algorithms(False)
    emulated.set_order(*ORDERS[0])


# Both sides round sums in the accumulation dtype to the dtype once.
TOLERANCES = {
    torch.float64: {"rtol": 1e-11, "atol": 1e-12},
    torch.float32: {"rtol": 1e-5, "atol": 3e-6},
    torch.bfloat16: {"rtol": 8e-3, "atol": 1e-5},
    torch.float16: {"rtol": 1e-3, "atol": 1e-5},
}


@pytest.fixture
def assert_same():
    """Compares tuples of tensors: layout, dtype, and values to the rounding."""

    def compare(actual, expected, tolerances=TOLERANCES):
        if isinstance(expected, torch.Tensor):
            expected = (expected,)
        for one, other in zip(actual, expected, strict=True):
            assert one.shape == other.shape
            assert one.stride() == other.stride()
            torch.testing.assert_close(
                one, other, equal_nan=True, **tolerances.get(one.dtype, {})
            )

    return compare
