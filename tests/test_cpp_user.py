"""C++ programs against the installed CMake package, without Python at run time."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from subquad import _library, info
from subquad.models.language_model import LanguageModel
from subquad.nn import CosformerAttention, LocalAttention, Performer

SOURCES = Path(__file__).parent / "cpp_user"
TOOLS = ("cmake", "ninja", "c++")
pytestmark = pytest.mark.skipif(
    any(shutil.which(tool) is None for tool in TOOLS), reason=f"needs {TOOLS}"
)


def run(*command, expect=0):
    # Programs start without anything of this Python in their environment.
    keep = ("PATH", "HOME", "TMPDIR")
    env = {name: os.environ[name] for name in keep if name in os.environ}
    done = subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        check=False,
        env=env,
    )
    assert done.returncode == expect, done.stdout + done.stderr
    return done.stdout + done.stderr


def configure(build, *options, expect=0):
    command = ["cmake", f"-S{SOURCES}", f"-B{build}", "-GNinja", *options]
    return run(*command, expect=expect)


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """The folder with the three programs."""
    build = tmp_path_factory.mktemp("cpp_user")
    configure(
        build,
        f"-Dsubquad_DIR={info.cmake_dir()}",
        f"-DPython_EXECUTABLE={sys.executable}",
    )
    run("cmake", "--build", build)
    return build


def test_info_names_the_cmake_package(capsys):
    assert info.main(["--cmake-dir"]) == 0
    folder = Path(capsys.readouterr().out.strip())
    assert (folder / "subquad-config.cmake").exists()


def save_numbers(path, model, input):
    with torch.no_grad():
        torch.save({"input": input, "output": model(input)}, path)


def test_operator_with_autograd(programs):
    assert "largest error" in run(programs / "autograd")


def test_programs_do_not_load_python(programs):
    libraries = run("ldd", programs / "autograd", programs / "scripted")
    assert "libsubquad.so" in libraries
    assert "libpython" not in libraries
    assert "libtorch_python" not in libraries


def test_scripted_language_model(programs, tmp_path):
    torch.manual_seed(0)
    model = LanguageModel(50, width=32, heads=2, layers=2).eval()
    torch.jit.script(model).save(tmp_path / "model.pt")
    save_numbers(tmp_path / "numbers.pt", model, torch.randint(50, (2, 37)))
    run(programs / "scripted", tmp_path / "model.pt", tmp_path / "numbers.pt")


def test_wrong_numbers_are_noticed(programs, tmp_path):
    torch.manual_seed(0)
    model = LanguageModel(50, width=32, heads=2, layers=1).eval()
    torch.jit.script(model).save(tmp_path / "model.pt")
    other = LanguageModel(50, width=32, heads=2, layers=1).eval()
    save_numbers(tmp_path / "numbers.pt", other, torch.randint(50, (2, 37)))
    files = (tmp_path / "model.pt", tmp_path / "numbers.pt")
    run(programs / "scripted", *files, expect=1)


class Block(torch.nn.Module):
    """What is compiled: attention and something for Inductor to fuse around it."""

    def __init__(self, attention):
        super().__init__()
        self.attention = attention

    def forward(self, x):
        return torch.nn.functional.gelu(x + self.attention(x)[0])


@pytest.mark.parametrize(
    ("cls", "options", "operators"),
    [
        (LocalAttention, {"window_size": 4}, {"_window_attention_forward"}),
        (Performer, {}, {"_random_features_forward", "_linear_attention_forward"}),
        (
            CosformerAttention,
            {"max_length": 30},
            {"cosine_weights", "_linear_attention_forward"},
        ),
    ],
)
def test_aot_inductor_package(cls, options, operators, programs, tmp_path):
    torch.manual_seed(0)
    model = Block(cls(32, 4, causal=True, **options)).eval()
    x = torch.randn(21, 2, 32)  # [T, B, C]
    save_numbers(tmp_path / "numbers.pt", model, x)
    package = tmp_path / "model.pt2"
    with torch.no_grad():
        torch._inductor.aoti_compile_and_package(
            torch.export.export(model, (x,)), package_path=str(package)
        )
    # The operators stay calls, which the loader makes through the dispatcher.
    with zipfile.ZipFile(package) as archive:
        calls = [
            json.loads(archive.read(name))
            for name in archive.namelist()
            if name.endswith(".wrapper.json")
        ]
    names = {node["node"]["target"] for call in calls for node in call["nodes"]}
    assert {f"subquad::{name}" for name in operators} <= names
    run(programs / "compiled", package, tmp_path / "numbers.pt")


def copied_package(folder, torch_version):
    """The CMake package of a library that was built for another torch."""
    shutil.copytree(info.cmake_dir(), folder / "cmake")
    record = _library.build_info() | {"torch": torch_version}
    (folder / "_build_info.json").write_text(json.dumps(record, indent=2))
    return f"-Dsubquad_DIR={folder / 'cmake'}"


def one_line(text):
    return " ".join(text.split())


def test_other_torch_minor_is_refused_by_cmake(tmp_path):
    output = configure(
        tmp_path / "build",
        copied_package(tmp_path, "2.13.0+cpu"),
        f"-DSUBQUAD_TORCH_ROOT={Path(torch.__file__).parent}",
        expect=1,
    )
    found = torch.__version__.split("+")[0]
    assert f"built for torch 2.13 and found torch {found}" in one_line(output)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("-DSUBQUAD_TORCH_ROOT=/nowhere", "must be a folder with torch's include/"),
        ("-DPython_EXECUTABLE=/bin/false", "/bin/false cannot import torch"),
    ],
)
def test_torch_not_found_is_one_sentence(tmp_path, option, message):
    output = configure(tmp_path, f"-Dsubquad_DIR={info.cmake_dir()}", option, expect=1)
    assert message in one_line(output)
