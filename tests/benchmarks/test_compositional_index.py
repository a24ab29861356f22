import json
from pathlib import Path

import pytest

from subquad import cli
from subquad.benchmarks.compositional_index import compositional_index

GOLDEN = json.loads(
    (Path(__file__).parents[1] / "golden" / "cab" / "scripts_expected.json").read_text()
)["compositional_index"]
ROWS = GOLDEN["input_lines"]


def text_of(rows):
    return "\n".join(" ".join(map(str, row)) for row in rows) + "\n"


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "scores.txt"
    path.write_text(text_of(ROWS))
    return path


def test_scores_are_those_of_the_project():
    scores = compositional_index(ROWS)
    assert {
        pattern: {task: round(score, 4) for task, score in found.items()}
        for pattern, found in scores.items()
    } == GOLDEN["expected"]


def test_command_prints_and_writes(file, tmp_path, capsys):
    path = tmp_path / "scores.json"
    assert (
        cli.main(["bench", "compositional-index", str(file), "--json", str(path)]) == 0
    )
    blocks = [
        f"========{pattern}========\n"
        + "  ".join(f"{k}: {v:.4f}" for k, v in found.items() if k != "total")
        + f"\n\ntotal: {found['total']:.4f}\n"
        for pattern, found in GOLDEN["expected"].items()
    ]
    assert capsys.readouterr().out == "".join(blocks)
    written = json.loads(path.read_text())
    assert written["Causal Cross"]["Sum"] == pytest.approx(0.8665, abs=5e-5)


def test_a_missing_result_leaves_its_task_out(file, tmp_path, capsys):
    rows = [list(row) for row in ROWS]
    rows[1][5] = "nan"
    file.write_text(text_of(rows))
    path = tmp_path / "scores.json"
    assert (
        cli.main(["bench", "compositional-index", str(file), "--json", str(path)]) == 0
    )
    found = json.loads(path.read_text())["Causal Self"]
    assert found["LM"] is None
    assert found["total"] == pytest.approx((found["TTS"] + found["Sum"]) / 2)
    assert "LM: nan" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read: No such file"),
        (b"\xff\xfe\x00", "not a text of numbers"),
        (b"", "expected 4 lines, one per pattern, got 0"),
        (text_of(ROWS[:3]).encode(), "expected 4 lines, one per pattern, got 3"),
        (text_of([*ROWS, [1]]).encode(), "got 5"),
        (text_of([*ROWS[:2], ROWS[2][:-1], ROWS[3]]).encode(), "line 3, Noncausal Cr"),
        (text_of([["x"], *ROWS[1:]]).encode(), "line 1: expected a number, got 'x'"),
        (text_of([["inf"], *ROWS[1:]]).encode(), "expected a number, got 'inf'"),
    ],
)
def test_broken_files(tmp_path, capsys, content, message):
    path, results = tmp_path / "scores.txt", tmp_path / "results.json"
    results.write_text("old")
    if content is not None:
        path.write_bytes(content)
    words = ["bench", "compositional-index", str(path), "--json", str(results)]
    assert cli.main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.count("\n") == 1
    assert results.read_text() == "old"
