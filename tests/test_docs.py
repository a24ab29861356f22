"""The examples of README and docs run as they stand, and the tables are true.

All Python blocks of a page are one program, run in order. A line
``print(...)  # text`` must print that text. A block that cannot run here follows a
comment ``<!-- not run: why -->``; a shell block runs if it follows ``<!-- run -->``.
"""

import functools
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from subquad import functional, info, nn
from subquad.benchmarks.patterns import rows
from subquad.benchmarks.probes import probe

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(
    r"^(?:<!-- (?P<mark>.*) -->\n+)?```(?P<language>\w+).*\n(?P<code>(?:.*\n)*?)```$",
    re.M,
)


def name(page):
    return str(page.relative_to(ROOT))


def blocks(page, language):
    """Number of the first line, code and the comment before each block."""
    text = page.read_text(encoding="utf-8")
    return [
        (text.count("\n", 0, match.start("code")), match["code"], match["mark"] or "")
        for match in BLOCK.finditer(text)
        if match["language"] == language
    ]


def with_blocks(language, wanted):
    return [
        pytest.param(page, id=name(page))
        for page in PAGES
        if any(wanted(mark) for *_, mark in blocks(page, language))
    ]


@pytest.mark.parametrize(
    "page", with_blocks("python", lambda mark: not mark.startswith("not run: "))
)
def test_python_examples(page, tmp_path, monkeypatch, capsys):
    # A file, for TorchScript reads the source of functions; every line where it is
    # on the page.
    lines = []
    for first, code, mark in blocks(page, "python"):
        if not mark.startswith("not run: "):
            lines += [""] * (first - len(lines)) + code.splitlines()
    script = tmp_path / f"{page.stem.replace('-', '_')}.py"
    script.write_text("\n".join(lines) + "\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        runpy.run_path(str(script))
    promised = re.findall(r"^ *print\(.*\)  # (.*)$", "\n".join(lines), re.M)
    printed = capsys.readouterr().out.splitlines()
    if promised:
        assert printed == promised


@pytest.mark.parametrize("page", with_blocks("sh", lambda mark: mark == "run"))
def test_shell_examples(page, tmp_path):
    command = f'subquad() {{ {shlex.quote(sys.executable)} -m subquad "$@"; }}\n'
    for _, code, mark in blocks(page, "sh"):
        if mark == "run":
            ran = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", command + code],
                cwd=tmp_path,
                capture_output=True,
                text=True,
                check=False,
            )
            assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize("first, code", [b[:2] for b in blocks(PAGES[0], "cpp")])
def test_cpp_example(first, code, tmp_path):
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("needs g++")
    source, program = tmp_path / "main.cpp", tmp_path / "main"
    source.write_text(code, encoding="utf-8")
    command = [compiler, str(source), *info.cxx_flags(), "-o", str(program)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    ran = subprocess.run([str(program)], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == "[1, 8, 1024, 64]"


FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
INTEGERS = (torch.bool, torch.uint8, torch.int32, torch.int64)
WINDOW = {"block": 1, "left": 2, "right": 0, "causal": True}
LENGTH = {"max_length": 9}


def _inputs(name, dtype):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 2, 7, 4, generator=generator).to(dtype)
    lse = torch.zeros(2, 2, 7, dtype=torch.promote_types(dtype, torch.float32))
    return {
        "cosformer_attention": (x, x, x),
        "cosformer_attention_with_state": (x, x, x),
        "cosine_weights": (torch.arange(7).to(dtype),),
        "efficient_attention": (x, x, x),
        "linear_attention": (x, x, x),
        "linear_attention_with_state": (x, x, x),
        "mask_to_spans": ((x[0, 0] > 0).to(dtype),),
        "merge_attention": (x, lse, x.flip(2), lse + 1),
        "performer_attention": (x, x, x, x[0]),
        "performer_attention_with_state": (x, x, x, x[0]),
        "projection": (x, x[0, 0]),
        "random_features": (x, x[0]),
        "sequence_pool": (x, x),
        "sequence_pool_with_lse": (x, x),
        "window_attention": (x, x, x),
        "window_attention_weights": (x, x, lse + 3),
        "window_attention_with_lse": (x, x, x),
    }[name]


def _call(name, inputs, function=None):
    """Results, and the gradients of those that have some."""
    function = function or getattr(functional, name)
    inputs = [
        x.detach().requires_grad_(x.is_floating_point() and name != "mask_to_spans")
        for x in inputs
    ]
    options = WINDOW if name.startswith("window") else {}
    options = LENGTH if name == "cosine_weights" else options
    results = function(*inputs, **options)
    results = results if isinstance(results, tuple) else (results,)
    total = sum(result.sum() for result in results)
    gradients = ()
    if total.requires_grad:
        gradients = torch.autograd.grad(total, [x for x in inputs if x.requires_grad])
    return *results, *gradients


def _works(attempt):
    try:
        return bool(attempt())
    except Exception:  # any refusal
        return False


def _same(name, inputs, function=None):
    one, two = _call(name, inputs), _call(name, inputs, function)
    return all(map(torch.equal, one, two))


def _compiles(name, inputs):
    torch.compiler.reset()
    compiled = torch.compile(
        getattr(functional, name), fullgraph=True, backend="aot_eager"
    )
    return _same(name, inputs, compiled)


def _deterministic(name, inputs):
    torch.use_deterministic_algorithms(True)
    try:
        return _same(name, inputs)
    finally:
        torch.use_deterministic_algorithms(False)


def _autocasts(name, inputs):
    with torch.autocast("cpu", torch.bfloat16):
        return _call(name, inputs)[0].dtype == torch.bfloat16


def _dtypes(name):
    allowed = [
        dtype
        for dtype in FLOATS + INTEGERS
        if _works(lambda dtype=dtype: _call(name, _inputs(name, dtype)))
    ]
    if allowed == list(FLOATS):
        return ", ".join(str(dtype).removeprefix("torch.") for dtype in FLOATS)
    if allowed == [torch.int64]:
        return "int64"
    return "any" if allowed == list(FLOATS + INTEGERS) else str(allowed)


# Operators without kernels, and what they are composed of.
PARTS = {
    "cosformer_attention": ("linear_attention",),
    "efficient_attention": ("linear_attention", "sequence_pool"),
    "performer_attention": ("linear_attention", "random_features"),
}


def _cuda(name):
    room = name.removesuffix("_with_lse").removesuffix("_with_state")
    if room == "cosine_weights":
        return "PyTorch"
    if room in PARTS:
        cells = {_cuda(part) for part in PARTS[room]}
        return cells.pop() if len(cells) == 1 else "–"
    known = set(torch._C._dispatch_get_all_op_names())
    halves = {f"_{room}_{half}" for half in ("forward", "backward")}
    wanted = {half for half in halves if f"subquad::{half}" in known} or {room}
    registered = {
        half
        for glue in (ROOT / "csrc/ops" / room).glob("cuda*.cpp")
        for half in re.findall(r'm\.impl\(\s*"(\w+)"', glue.read_text("utf-8"))
    }
    if info.collect()["CUDA architectures built"]:
        has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
        assert all(has_kernel(f"subquad::{half}", "CUDA") for half in registered)
    if wanted <= registered:
        return "emulated"
    return "forward emulated" if f"_{room}_forward" in registered else "–"


def _facts(name):
    dtype = torch.int64 if name == "cosine_weights" else torch.float32
    inputs = _inputs(name, dtype)
    schema = getattr(torch.ops.subquad, name).default._schema
    arguments = {argument.name for argument in schema.arguments}
    scripted = torch.jit.script(getattr(functional, name))
    checks = {
        "CPU": _works(lambda: _call(name, inputs)),
        "backward": any(result.requires_grad for result in _call(name, inputs)),
        "autocast": _works(lambda: _autocasts(name, inputs)),
        "rows of tokens": {"lengths", "order"} <= arguments,
        "packed rows": "cu_seqlens" in arguments,
        "script": _works(lambda: _same(name, inputs, scripted)),
        "compile": _works(lambda: _compiles(name, inputs)),
        "deterministic": _works(lambda: _deterministic(name, inputs)),
    }
    marks = {column: "✓" if yes else "–" for column, yes in checks.items()}
    return marks | {"CUDA": _cuda(name), "dtypes": _dtypes(name)}


@functools.cache
def operator_facts():
    return {f"`{name}`": _facts(name) for name in info.collect()["operators"]}


@functools.cache
def mechanism_facts():
    head, *lines = rows({name: probe(name) for name in nn.mechanisms()})
    table = {line[0]: dict(zip(head, line, strict=True)) for line in lines}
    for name, cls in nn.mechanisms().items():
        table[name]["module"] = f"`nn.{cls.__name__}`"
    return table


@pytest.mark.parametrize("page", ["README.md", "docs/index.md"])
@pytest.mark.parametrize(
    "subject, facts", [("operator", operator_facts), ("mechanism", mechanism_facts)]
)
def test_support_tables(page, subject, facts):
    text = (ROOT / page).read_text(encoding="utf-8")
    tables = re.findall(rf"^\| {subject} \|.*\n\|[-| ]+\n(?:\|.*\n)+", text, re.M)
    assert tables
    for table in tables:
        head, _, *lines = (
            [cell.strip() for cell in line.strip("|").split("|")]
            for line in table.splitlines()
        )
        assert [line[0] for line in lines] == list(facts())
        for line in lines:
            # Columns that no test knows are prose.
            for column, cell in zip(head[1:], line[1:], strict=True):
                assert cell == facts()[line[0]].get(column, cell), (line[0], column)


@pytest.mark.parametrize("name", ["functional", "reference"])
def test_api_pages_are_complete(name):
    page = (ROOT / f"docs/reference/{name}.md").read_text(encoding="utf-8")
    package = getattr(__import__("subquad"), name)
    listed = set(re.findall(r"^::: .*\.(\w+)$", page, re.M))
    assert set(package.__all__) <= listed
