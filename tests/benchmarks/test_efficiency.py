import json
from contextlib import nullcontext
from math import log
from pathlib import Path

import pytest

from subquad import cli, nn
from subquad.benchmarks import efficiency, efficiency_plot
from subquad.benchmarks.costs import Costs, read_costs
from subquad.benchmarks.efficiency_length import efficiency_length
from tests.benchmarks.test_scaling import png_size

GOLDEN = json.loads(
    (Path(__file__).parents[1] / "golden" / "cab" / "scripts_expected.json").read_text()
)["efficiency_length"]
COSTS = {name: GOLDEN[name] for name in ("lengths", "time_ms", "memory_MB")}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "costs.json"
    path.write_text(json.dumps(COSTS))
    return path


def error_line(capsys, *words):
    assert cli.main(["bench", "efficiency", *map(str, words)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err


@pytest.mark.parametrize(
    ("quantity", "expected"), [("memory", "memory"), ("time", "time_x1000")]
)
def test_fits_are_those_of_the_project(file, quantity, expected):
    fit = efficiency.efficiency_lengths(read_costs(str(file)))[quantity]["abc"]
    right = GOLDEN["expected"][expected]
    assert fit.parabola == pytest.approx([right[k] for k in "abc"], rel=1e-6)
    assert fit.line == pytest.approx([right[k] for k in "de"], rel=1e-6)
    assert fit.length == pytest.approx(right["root"], rel=1e-6)
    assert fit.words() == str(right["rounded"])


def test_fit_of_exact_curves():
    lengths = (1, 2, 3, 4)
    softmax = [x * x + 1.0 for x in lengths]
    fit = efficiency_length(lengths, softmax, [3.0 * x - 1 for x in lengths])
    assert fit.length == pytest.approx(2)  # x^2 - 3 x + 2 = 0 at 1 and 2
    assert (fit.line_r2, fit.parabola_r2) == (pytest.approx(1), pytest.approx(1))
    # A cost that is missing or left out has no influence.
    line = [None, 5.0, 8.0, None]
    assert efficiency_length(lengths, softmax, line).length == pytest.approx(2)
    skipped = efficiency_length(lengths, softmax, [99.0, 5.0, 8.0, 11.0], skip=1)
    assert skipped.length == pytest.approx(2)


def test_curves_that_do_not_meet():
    lengths = (1, 2, 3, 4)
    line = [0.1 * x for x in lengths]
    fit = efficiency_length(lengths, [x * x + 5.0 for x in lengths], line)
    assert fit.words() == "none: cheaper at every length"
    fit = efficiency_length(lengths, [9.0 - x * x / 16 for x in lengths], line)
    assert fit.words() == "none: softmax does not grow with the square"
    fit = efficiency_length(lengths, [x * x + 3.0 * x for x in lengths], line)
    assert fit.words() == "0: cheaper at every length" or fit.length < 0


def test_a_file_of_measurements(file, tmp_path, capsys):
    plot, results = tmp_path / "x.png", tmp_path / "x.json"
    words = ["--measurements", file, "--plot", plot, "--json", results]
    assert cli.main(["bench", "efficiency", *map(str, words)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[:3] == ["memory", "abc", "70"]
    assert lines[1].endswith("cheaper from at most 256")
    assert lines[2].split()[:3] == ["time", "abc", "1877"]
    # 0.648 and 0.472 ms at 256, 0.590 and 0.628 at 512.
    crossing = 256 * 2 ** (log(648 / 472) / (log(648 / 472) + log(628 / 590)))
    assert lines[2].endswith(f"cheaper from {crossing:.0f}")
    assert min(png_size(plot)) > 300
    # What it writes it reads.
    assert read_costs(str(results)).to_json() == read_costs(str(file)).to_json()


def test_a_workbook_of_the_project(tmp_path):
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    for sheet, key in (("time", "time_ms"), ("memory", "memory_MB")):
        page = book.create_sheet(sheet)
        page.append([None, *map(str, COSTS["lengths"])])
        for name, row in COSTS[key].items():
            page.append([name, *(map(str, row) if sheet == "memory" else row)])
    path = tmp_path / "cost.xlsx"
    book.save(path)
    found = read_costs(str(path)).to_json()
    assert {name: found[name] for name in COSTS} == COSTS


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read: No such file"),
        ("{", "not JSON"),
        ("[]", "expected an object"),
        ('{"lengths": [1, 2]}', "expected time_ms or memory_MB"),
        ('{"lengths": [1, 2], "time_ms": [1]}', "expected time_ms or memory_MB"),
        ('{"time_ms": {"a": []}}', "positive lengths in rising order, got None"),
        ('{"lengths": [2, 1], "time_ms": {"a": []}}', "in rising order, got [2, 1]"),
        ('{"lengths": [1, 2], "time_ms": {"a": [1]}}', "a: expected 2 costs, got [1]"),
        ('{"lengths": [1], "time_ms": {"a": ["x"]}}', "costs of at least 0, got 'x'"),
        ('{"lengths": [1], "time_ms": {"a": [-1]}}', "costs of at least 0, got -1"),
        ('{"lengths": [1], "time_ms": {"a": [1]}}', "needs softmax and another"),
        ('{"lengths": [1], "time_ms": {"a": [1], "b": [1]}}', "at three lengths"),
    ],
)
def test_broken_files(tmp_path, capsys, content, message):
    path, results = tmp_path / "costs.json", tmp_path / "results.json"
    results.write_text("old")
    if content is not None:
        path.write_text(content)
    line = error_line(capsys, "--measurements", path, "--json", results)
    assert message in line
    assert results.read_text() == "old"


def test_broken_workbook(tmp_path, capsys):
    path = tmp_path / "cost.xlsx"
    path.write_text("no zip")
    assert "not a workbook" in error_line(capsys, "--measurements", path)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--attention locl", "unknown mechanism 'locl', did you mean 'local'"),
        ("--attention softmax", "nothing to compare with softmax"),
        ("--lengths 64,128", "at least four different lengths, got '64,128'"),
        ("--batch 0", "--batch: expected a positive number, got '0'"),
        ("--dropout 2", "dropout must lie in [0, 1), got 2.0"),
        ("--windw-size 2", "did you mean '--window-size'"),
        ("--json no/x.json", "cannot write no/x.json: No such file"),
    ],
)
def test_bad_arguments(capsys, words, message):
    assert message in error_line(capsys, *words.split())


def test_measured_costs(tmp_path, capsys):
    path = tmp_path / "x.json"
    options = "--lengths 32,64,128,256 --repeats 2 --threads 1 --window-size 4".split()
    assert cli.main(["bench", "efficiency", *options, "--json", str(path)]) == 0
    names = ["softmax", *(name for name in nn.mechanisms() if name != "softmax")]
    # A head, two costs of every other mechanism, and the name of the file.
    assert len(capsys.readouterr().out.splitlines()) == 2 * len(names)
    records = json.loads(path.read_text())
    assert records["options"]["local"] == {"window_size": 4}
    for key in ("time_ms", "memory_MB"):
        assert list(records[key]) == names
        assert all(cost > 0 for row in records[key].values() for cost in row)
    # Weights of two dropped-out maps per head: softmax needs a square, local none.
    memory = records["memory_MB"]
    assert (
        memory["softmax"][3] - memory["softmax"][2] > 8 * (256**2 - 128**2) * 4 / 2**20
    )


def test_softmax_is_not_run_where_memory_ends(monkeypatch):
    class Server:
        def extra_bytes(self, prepare, length, arguments):
            return length**2 if arguments["name"] == "softmax" else length

    monkeypatch.setattr(efficiency, "available_memory", lambda: 100_000)
    monkeypatch.setattr(
        efficiency, "serve_memory", lambda threads: nullcontext(Server())
    )
    options = efficiency._parser([]).parse_args(
        "--lengths 16,64,256,512 --repeats 1 --threads 1".split()
    )
    costs = efficiency._Measurement(options, {"local": {}}, strict=False).costs()
    # 64^2 times 4^2 is 65536 bytes, of 512 tokens it would be 262144.
    assert [cost is None for cost in costs.memory["softmax"]] == [False] * 3 + [True]
    assert [cost is None for cost in costs.time["softmax"]] == [False] * 3 + [True]
    assert None not in [*costs.memory["local"], *costs.time["local"]]
    (reason,) = costs.reasons
    assert reason.startswith("softmax: not run at L = 512, where it may take")


def test_times_need_no_count_of_memory(monkeypatch):
    class Server:
        def extra_bytes(self, prepare, length, arguments):
            return "FileNotFoundError: /proc/self/clear_refs"

    monkeypatch.setattr(
        efficiency, "serve_memory", lambda threads: nullcontext(Server())
    )
    options = efficiency._parser([]).parse_args(
        "--lengths 16,32,64,128 --repeats 1 --threads 1".split()
    )
    costs = efficiency._Measurement(options, {"local": {}}, strict=False).costs()
    assert list(costs.quantities()) == ["time"]
    assert None not in [*costs.time["softmax"], *costs.time["local"]]
    assert "local: no memory at L = 128: FileNotFoundError" in " ".join(costs.reasons)


def test_what_ended_its_process_is_not_run_here(monkeypatch):
    class Server:
        def extra_bytes(self, prepare, length, arguments):
            ended = arguments["name"] == "softmax" and length == 128
            return "the process ended with status 9" if ended else length

    monkeypatch.setattr(
        efficiency, "serve_memory", lambda threads: nullcontext(Server())
    )
    options = efficiency._parser([]).parse_args(
        "--lengths 16,32,64,128 --repeats 1 --threads 1".split()
    )
    costs = efficiency._Measurement(options, {"local": {}}, strict=False).costs()
    assert [cost is None for cost in costs.time["softmax"]] == [False] * 3 + [True]
    assert None not in costs.time["local"]


@pytest.mark.parametrize(
    ("seconds", "mean"), [([3], 3), ([1, 5], 3), ([1, 2, 3, 4, 90], 3), ([1, 2, 9], 2)]
)
def test_times_are_means_of_the_middle(seconds, mean):
    assert efficiency._middle_mean(seconds) == mean


def test_plot_shows_meeting_points_beside_the_lengths():
    costs = Costs(COSTS["lengths"], COSTS["time_ms"], COSTS["memory_MB"])
    figure = efficiency_plot.draw(costs, efficiency.efficiency_lengths(costs))
    memory, time = figure.axes
    assert (memory.get_ylabel(), time.get_ylabel()) == ("memory (MiB)", "time (ms)")
    assert memory.get_xlim()[0] < 70
    assert "70" in {text.get_text() for text in memory.texts}
    labels = [text.get_text() for text in time.get_legend().get_texts()]
    assert labels == ["vanilla", "abc: 1877"]
