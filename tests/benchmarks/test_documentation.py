"""What docs/benchmarks.md shows exists."""

import json
import re
from pathlib import Path

import pytest

from subquad import benchmarks
from subquad.benchmarks.costs import read_costs
from subquad.benchmarks.peers import PEERS
from subquad.benchmarks.studies import STUDIES

PAGE = (Path(__file__).parents[2] / "docs" / "benchmarks.md").read_text("utf-8")
COMMANDS = re.findall(r"^subquad bench.*$", PAGE, re.M)


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_have_these_options(command, capsys):
    words = command.split()[2:]
    study = words[:1] if words[:1] and words[0] in STUDIES else []
    with pytest.raises(SystemExit):
        benchmarks.main([*study, "--help"])
    known = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
    assert known >= {word for word in words if word.startswith("--")}


def test_every_command_and_peer_is_told():
    assert {name for name in STUDIES if f"`subquad bench {name}`" in PAGE} == {*STUDIES}
    for package in PEERS:
        assert f"`{package}`" in PAGE


def test_the_example_of_measurements_can_be_read(tmp_path):
    (example,) = re.findall(r"^```json\n(.*?)^```$", PAGE, re.M | re.S)
    path = tmp_path / "costs.json"
    path.write_text(example)
    assert (
        read_costs(str(path)).time["local"] == json.loads(example)["time_ms"]["local"]
    )
