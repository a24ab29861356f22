import os

import pytest

from subquad.benchmarks.output import check_outputs, write, write_json
from subquad.training.errors import CommandError


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    write_json(str(path), {"old": 1})

    def replace(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(CommandError, match=r"cannot write .*: No space left"):
        write_json(str(path), {"new": 2})
    assert path.read_text() == '{\n "old": 1\n}\n'
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_no_file_is_written_in_place():
    write("/dev/null", "nothing")
    assert not os.path.isfile("/dev/null")


def test_outputs_are_checked_before(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    check_outputs(None, str(file), str(tmp_path / "new"))
    for path, reason in (
        (tmp_path, "Is a directory"),
        (tmp_path / "no" / "new", "No such file"),
        (file / "new", "Not a directory"),
    ):
        with pytest.raises(CommandError, match=reason):
            check_outputs(str(path))
