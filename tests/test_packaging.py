"""The installed package: build record, library, command line, metadata."""

import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import subquad
from subquad import _library

ROOT = Path(__file__).parents[1]


def test_build_record_names_this_torch_minor():
    record = _library.build_info()
    assert record["version"] == subquad.__version__
    assert record["torch"].split(".")[:2] == torch.__version__.split(".")[:2]


def test_version_is_that_of_pyproject():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert re.search(rf'^version = "{re.escape(subquad.__version__)}"$', text, re.M)


@pytest.mark.parametrize("found", ["2.13.0+cpu", "2.15.0", "3.0.1+cu130"])
def test_other_torch_minor_is_refused_with_a_remedy(found):
    record = {"version": "0.1.0", "torch": "2.14.1+cu130"}
    with pytest.raises(ImportError) as caught:
        _library.check(record, found)
    message = str(caught.value)
    assert "built for torch 2.14" in message
    assert f"found torch {found}" in message
    assert "pip install 'torch==2.14.*'" in message


@pytest.mark.parametrize("found", ["2.14.0", "2.14.1+cpu", "2.14.9+cu126"])
def test_other_torch_patch_is_accepted(found):
    _library.check({"version": "0.1.0", "torch": "2.14.1+cu130"}, found)


def test_cpu_build_of_torch_is_refused_by_a_cuda_build():
    record = {"version": "0.1.0", "torch": "2.14.1+cu130", "cuda": "80-real"}
    with pytest.raises(ImportError, match=r"CPU build of torch.*-DSUBQUAD_CUDA=off"):
        _library.check_cuda(record, None)
    _library.check_cuda(record, "13.0")
    _library.check_cuda(record | {"cuda": ""}, None)


@pytest.mark.skipif(
    bool(_library.build_info()["cuda"]), reason="the library has CUDA kernels"
)
def test_a_build_without_cuda_kernels_says_so():
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
    lse = torch.zeros(1, 1, 2)
    output = torch.zeros(1, 1, 2, 3)
    reason = re.escape(_library.build_info()["cuda_reason"])
    with pytest.raises(
        NotImplementedError,
        match=rf"^merge_attention: .*no CUDA kernels \({reason}\).*-DSUBQUAD_CUDA=on",
    ):
        torch.ops.subquad._merge_attention_forward.default.redispatch(
            keys, output, lse, output, lse
        )
    with pytest.raises(NotImplementedError, match=r"^mask_to_spans: "):
        torch.ops.subquad.mask_to_spans.default.redispatch(keys, lse[0])


def test_mismatch_is_seen_before_the_library_is_loaded(tmp_path):
    package = tmp_path / "subquad"
    shutil.copytree(
        Path(subquad.__file__).parent,
        package,
        ignore=shutil.ignore_patterns("*.so", "__pycache__", "benchmarks"),
    )
    record = _library.build_info() | {"torch": "2.13.0"}
    (package / "_build_info.json").write_text(json.dumps(record), encoding="utf-8")
    (package / "libsubquad.so").write_bytes(b"not a library")
    result = subprocess.run(
        [sys.executable, "-c", "import subquad"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert "built for torch 2.13" in result.stderr
    assert "undefined symbol" not in result.stderr


def test_missing_library_says_how_to_build(tmp_path, monkeypatch):
    monkeypatch.setattr(_library, "_FOLDER", tmp_path)
    with pytest.raises(ImportError, match=r"is not built in .*pip install"):
        _library.load()


def test_broken_library_is_one_import_error(tmp_path, monkeypatch):
    (tmp_path / "_build_info.json").write_text(
        json.dumps(_library.build_info()), encoding="utf-8"
    )
    (tmp_path / "libsubquad.so").write_bytes(b"\x7fELF")
    monkeypatch.setattr(_library, "_FOLDER", tmp_path)
    with pytest.raises(ImportError, match=r"cannot load .*Reinstall"):
        _library.load()


@pytest.mark.skipif(shutil.which("nm") is None, reason="needs binutils' nm")
@pytest.mark.skipif(
    not _library.build_info()["cuda"], reason="the library has no CUDA kernels"
)
def test_every_operator_has_cuda_kernels():
    private = [
        name
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("subquad::_") or name == "subquad::mask_to_spans"
    ]
    assert len(private) > 4
    assert [
        name
        for name in private
        if not torch._C._dispatch_has_kernel_for_dispatch_key(name, "CUDA")
    ] == []


def test_operator_library_uses_no_python_symbols():
    symbols = subprocess.run(
        ["nm", "-D", "--undefined-only", str(_library.library_path())],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    names = [line.split()[-1] for line in symbols.splitlines()]
    assert names
    assert not [name for name in names if re.match(r"_?Py[A-Z_]", name)]


def test_info_prints_what_is_in_use():
    result = subprocess.run(
        [sys.executable, "-m", "subquad", "info", "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    report = json.loads(result.stdout)
    assert report["subquad"] == subquad.__version__
    assert report["torch"] == torch.__version__
    assert report["CPU kernels in use"] in report["CPU kernels built"]
    assert "window_attention" in report["operators"]
    if report["CUDA architectures built"]:
        assert report["CUDA compiler"]
        assert all(
            re.match(r"(sm|compute)_\d+", name)
            for name in report["CUDA architectures built"]
        )
    else:
        assert report["missing"]["CUDA kernels"]


def test_info_for_people_names_every_line():
    result = subprocess.run(
        [sys.executable, "-m", "subquad", "info"],
        capture_output=True,
        text=True,
        check=True,
    )
    for word in ("subquad", "torch", "CPU kernels in use", "missing"):
        assert re.search(rf"^{word}", result.stdout, re.M)


def test_metadata():
    metadata = importlib.metadata.metadata("subquad")
    assert metadata["Version"] == subquad.__version__
    assert "torch<2.15,>=2.14" in (importlib.metadata.requires("subquad") or [])
    assert (Path(subquad.__file__).parent / "py.typed").exists()
