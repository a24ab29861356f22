"""``subquad info``: what is installed, what is in use, what is missing and why."""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
from pathlib import Path
from typing import Any

import torch

from subquad import _fairseq, _library
from subquad.training.errors import CommandError

_EXTRAS = {
    "tensorboard": "TensorBoard logs of `subquad train`: pip install 'subquad[train]'",
}


def _introspection() -> str | None:
    if importlib.util.find_spec("subquad._plan") is None:
        return "built without pybind11 (-DSUBQUAD_WITH_PYBIND=OFF)"
    return None


def _architecture(name: str) -> str:
    # CMake's names: 90-real is code for a GPU, 90-virtual is PTX for newer ones.
    number, _, kind = name.partition("-")
    return f"compute_{number} (PTX)" if kind == "virtual" else f"sm_{number}"


def collect() -> dict[str, Any]:
    """Returns everything that the command prints, as plain data."""
    record = _library.build_info()
    built = str(record["cpu_capabilities"]).split(";")
    running = torch.backends.cpu.get_cpu_capability()
    architectures = [
        _architecture(name) for name in str(record["cuda"]).split(";") if name
    ]
    missing: dict[str, str] = {}
    if not architectures:
        missing["CUDA kernels"] = record["cuda_reason"]
    elif not torch.cuda.is_available():
        missing["CUDA device"] = "torch finds none on this machine"
    reason = _introspection()
    if reason is not None:
        missing["introspection module"] = reason
    for module, remedy in _EXTRAS.items():
        if importlib.util.find_spec(module) is None:
            missing[module] = remedy
    reason = _fairseq.missing()
    if reason is not None:
        missing["fairseq"] = reason
    return {
        "subquad": record["version"],
        "built for torch": record["torch"],
        "torch": torch.__version__,
        "python": platform.python_version(),
        "compiler": record["compiler"],
        "CPU kernels built": built,
        "CPU kernels in use": running if running in built else "DEFAULT",
        "threads": torch.get_num_threads(),
        "CUDA architectures built": architectures,
        "CUDA compiler": record["cuda_compiler"],
        "operators": sorted(
            name.removeprefix("subquad::")
            for name in torch._C._dispatch_get_all_op_names()
            if name.startswith("subquad::") and not name.startswith("subquad::_")
        ),
        "missing": missing,
    }


def cxx_flags() -> list[str]:
    """Returns what a C++ compiler needs to build and link a program that uses us."""
    package = _library.library_path().parent
    root = Path(torch.__file__).parent
    libraries = [root / "lib/libtorch_cpu.so", root / "lib/libc10.so"]
    if _library.build_info()["cuda"]:
        # The library needs these by name, and finds them where the program did.
        libraries += [root / "lib/libc10_cuda.so", root / "lib/libtorch_cuda.so"]
        for name in ("libcudart*.so.*", "libcublas.so.*"):
            libraries += [
                *root.glob(f"lib/{name}"),
                *root.parent.glob(f"nvidia/*/lib/{name}"),
            ]
    folders = sorted({str(path.parent) for path in libraries})
    return [
        "-std=c++20",
        f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}",
        f"-I{package / 'include'}",
        f"-isystem{root / 'include'}",
        f"-isystem{root / 'include/torch/csrc/api/include'}",
        # The program names no symbol of the library: loading it registers the
        # operators.
        "-Wl,--no-as-needed",
        str(_library.library_path()),
        *map(str, libraries),
        f"-Wl,-rpath,{':'.join([str(package), *folders])}",
    ]


def cmake_dir() -> str:
    """Returns the folder of our CMake package, for ``-Dsubquad_DIR=``."""
    return str(_library.library_path().parent / "cmake")


def main(argv: list[str] | None = None) -> int:
    """Prints the report.

    Args:
        argv: arguments after ``subquad info``.

    Returns:
        The exit code, 0.

    Raises:
        CommandError: fairseq is asked for and cannot be used.
    """
    parser = argparse.ArgumentParser(prog="subquad info", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--cxx-flags",
        action="store_true",
        help="print the compiler flags for a C++ program that calls the operators",
    )
    parser.add_argument(
        "--cmake-dir",
        action="store_true",
        help="print the folder that find_package(subquad) wants as subquad_DIR",
    )
    parser.add_argument(
        "--fairseq-user-dir",
        action="store_true",
        help="print the folder for fairseq's --user-dir",
    )
    arguments = parser.parse_args(argv)
    if arguments.fairseq_user_dir:
        reason = _fairseq.missing()
        if reason is not None:
            raise CommandError(f"--fairseq-user-dir: {reason}")
        print(_fairseq.user_dir())
        return 0
    if arguments.cmake_dir:
        print(cmake_dir())
        return 0
    if arguments.cxx_flags:
        print(" ".join(cxx_flags()))
        return 0
    report = collect()
    if arguments.json:
        print(json.dumps(report, indent=2))
        return 0
    missing = report.pop("missing")
    width = max(len(name) for name in report)
    for name, value in report.items():
        text = ", ".join(value) if isinstance(value, list) else str(value)
        print(f"{name:<{width}}  {text or 'none'}")
    print(f"{'missing':<{width}}  {'nothing' if not missing else ''}".rstrip())
    for name, why in missing.items():
        print(f"  {name}: {why}")
    return 0
