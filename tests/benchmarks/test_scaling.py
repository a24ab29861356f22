import importlib.util
import json
import struct

import pytest
import torch

from subquad import benchmarks, cli
from subquad.benchmarks import plot, scaling_plot
from subquad.training.errors import CommandError


def png_size(path):
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", data[16:24])


def record(length, which, **seconds):
    return {
        "entry": "made",
        "labels": {"L": length, "pass": which},
        "error": None,
        "expected_seconds": length / 1e6,
        "tensor_bytes": 1024 * length,
        "contenders": {
            name: {"median_seconds": value, "extra_bytes": 100 * length, "leaks": 0}
            for name, value in seconds.items()
        },
    }


@pytest.fixture
def records():
    cases = [
        record(length, which, subquad=64.0 * length, SDPA=1.0 * length**2)
        for which in ("forward", "both")
        for length in (16, 256, 1024)
    ]
    cases[0]["contenders"]["SDPA"]["leaks"] = True
    return {
        "cases": cases,
        "expected_share": 0.65,
        "crossovers": benchmarks.run.crossover.crossovers(cases),
        "machine": {"processor": "one", "versions": {"torch": torch.__version__}},
        "threads": 1,
    }


def test_panels_show_costs_and_the_crossover(records):
    figure = scaling_plot.draw(records)
    time, memory, time_both, _ = figure.axes
    for axes in (time, memory):
        assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
        assert axes.get_xlabel() == "length L (tokens)"
    assert time.get_ylabel() == "time (ms)"
    assert memory.get_ylabel() == "extra memory (MiB)"
    assert time_both.get_title() == "made, forward + backward"
    lines = {line.get_label(): line for line in time.get_lines()}
    assert list(lines["subquad"].get_ydata()) == [64e3 * x for x in (16, 256, 1024)]
    assert "SDPA (leaks)" in lines
    assert any(label.startswith("roof: 65 %") for label in lines)
    assert "softmax costs more from L = 64" in {t.get_text() for t in time.texts}
    crossing = [x for line in time.get_lines() for x in line.get_xdata()]
    assert any(abs(x - 64) < 1e-6 for x in crossing)
    assert "softmax is cheaper up to 1k" in {t.get_text() for t in memory.texts}


def test_nothing_or_too_much_to_draw(records):
    with pytest.raises(CommandError, match="nothing was measured"):
        scaling_plot.draw({**records, "cases": []})
    many = [
        {**case, "labels": {**case["labels"], "window": i}}
        for case in records["cases"]
        for i in range(7)
    ]
    with pytest.raises(CommandError, match="at most 12 rows of panels, got 14"):
        scaling_plot.draw({**records, "cases": many})


def test_scaling_writes_a_plot_and_records(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    options = "--lengths 64,128 --windows 8 --repeats 1 --threads 1 --memory none"
    assert cli.main(["bench", "scaling", *options.split()]) == 0
    width, height = png_size(tmp_path / "scaling.png")
    assert width > height > 800
    records = json.loads((tmp_path / "scaling.json").read_text())
    assert {case["entry"] for case in records["cases"]} == {"window_attention"}
    assert len(records["crossovers"]) == 2
    for case in records["cases"]:
        status = {name: c["status"] for name, c in case["contenders"].items()}
        shown = {name for name, s in status.items() if s != "absent"}
        assert shown == {"subquad", "einsum", "SDPA", "local-attention"}
    assert "written: scaling.png" in capsys.readouterr().out


def test_without_matplotlib_nothing_is_measured(tmp_path, monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name: None if name == "matplotlib" else find(name),
    )
    path = tmp_path / "x.png"
    for command in ("scaling", "efficiency"):
        assert cli.main(["bench", command, "--plot", str(path)]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err == (
            "subquad: --plot: matplotlib is not installed: "
            'pip install "subquad[bench]"\n'
        )
    assert not path.exists()


def test_lengths_are_short():
    assert [plot.short(x) for x in (96, 1024, 1536, 1 << 21)] == [
        "96",
        "1k",
        "1536",
        "2M",
    ]
