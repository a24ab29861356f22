import dataclasses
import json
import sys

import pytest
import torch

from subquad import benchmarks, cli
from subquad.benchmarks import arguments, registry, report, run
from subquad.benchmarks.registry import (
    Case,
    Contender,
    Entry,
    Future,
    UnavailableError,
    entries,
)
from subquad.benchmarks.studies import STUDIES
from subquad.training.errors import CommandError

QUICK = ["--repeats", "2", "--memory", "none", "--threads", "1"]


def bench(tmp_path, *words):
    """Exit code and JSON of a run."""
    path = tmp_path / "bench.json"
    code = benchmarks.main([*words, *QUICK, "--json", str(path)])
    return code, json.loads(path.read_text())


def constant(*results):
    return lambda inputs, backward: lambda: results


def unavailable(inputs, backward):
    raise UnavailableError("no such thing here")


def broken(inputs, backward):
    raise RuntimeError("does not work\nat all")


@pytest.fixture
def register_case(monkeypatch):
    """Registers an entry "made" of one case with given contenders."""
    entries()

    def register(*contenders, right=(1.0, 2.0)):
        case = Case(
            entry="made",
            labels={"L": 2, "pass": "forward"},
            inputs=lambda: (torch.zeros(2),),
            definition=constant(torch.tensor(right, dtype=torch.float64)),
            contenders=[Contender(name, build) for name, build in contenders],
            useful_flops=10,
            touched_bytes=16,
            tensor_bytes=16,
        )
        entry = Entry("made", "for a test", lambda options: [case])
        monkeypatch.setitem(registry._ENTRIES, "made", entry)

    return register


def test_help_names_the_commands(capsys):
    with pytest.raises(SystemExit):
        benchmarks.main(["--help"])
    printed = capsys.readouterr().out
    for name in STUDIES:
        assert f"  {name} " in printed
        with pytest.raises(SystemExit):
            benchmarks.main([name, "--help"])
        assert f"usage: subquad bench {name} " in capsys.readouterr().out


def test_list_names_every_operator_and_module(capsys):
    assert benchmarks.main(["--list"]) == 0
    printed = capsys.readouterr().out
    for name in ("window_attention", "linear_attention", "projection", "Performer"):
        assert f"{name} " in printed


def test_every_contender_agrees_and_is_recorded(tmp_path, capsys):
    threads = torch.get_num_threads()
    code, records = bench(
        tmp_path, "window_attention", "--lengths", "64,96", "--windows", "8"
    )
    assert code == 0
    assert torch.get_num_threads() == threads
    assert records["schema"] == 1
    assert records["machine"]["versions"]["torch"] == torch.__version__
    assert records["threads"] == 1
    assert records["rates"]["flops_per_second"] > 0
    assert len(records["cases"]) == 3 * 2 * 2
    for case in records["cases"]:
        assert case["error"] is None
        contenders = case["contenders"]
        assert contenders["subquad"]["times_library"] == 1
        for name in ("subquad", "einsum", "SDPA chunks", "SDPA", "SDPA + mask"):
            answer = contenders[name]
            assert len(answer["seconds"]) == 2
            assert answer["times_expected"] > 0
            if name != "SDPA":
                assert answer["error"] < 1e-4
        assert contenders["SDPA"]["error"] is None  # another function
        assert contenders["FlexAttention"]["reason"] == "not asked for: --peers"
        assert contenders["einsum compiled"]["reason"] == "not asked for: --compile"
        seconds = contenders["subquad"]["median_seconds"]
        rates = case["rates"]
        assert contenders["subquad"]["useful_share"] == pytest.approx(
            case["useful_flops"] / seconds / rates["flops_per_second"]
        )
        assert case["expected_seconds"] == pytest.approx(
            case["useful_flops"] / 0.65 / rates["flops_per_second"]
            + case["touched_bytes"] / rates["copy_bytes_per_second"]
        )
    printed = capsys.readouterr().out
    assert "- FlexAttention: not asked for: --peers\n" in printed
    assert "- causal 8 fwd: faster than softmax over all keys" in printed


def test_useful_work_of_a_case(tmp_path):
    _, records = bench(
        tmp_path,
        "window_attention",
        *("--lengths", "64", "--windows", "8", "--kinds", "causal"),
        *("--against", "SDPA"),
    )
    forward, both = records["cases"]
    pairs = 8 * 9 // 2 + 56 * 8
    assert forward["useful_flops"] == pairs * 8 * 2 * 2 * 64
    assert both["useful_flops"] == pairs * 8 * 7 * 2 * 64
    tensor = 8 * 64 * 64 * 4
    assert forward["tensor_bytes"] == 4 * tensor
    assert forward["touched_bytes"] == 4 * tensor + 8 * 64 * 4


@pytest.mark.parametrize("name", ["LocalAttention", "projection"])
def test_modules_and_projection_agree(tmp_path, name):
    options = ["--lengths", "64", "--windows", "8", "--peers"]
    code, records = bench(tmp_path, name, *options)
    assert code == 0
    for case in records["cases"]:
        assert case["error"] is None
        for name, contender in case["contenders"].items():
            if name == "einsum compiled":
                assert contender["reason"] == "not asked for: --compile"
                continue
            assert contender["median_seconds"] > 0
            assert not contender["leaks"]


@pytest.mark.parametrize(
    ("name", "words", "cases"),
    [
        ("linear_attention", [], 4 * 2),
        ("linear_attention_long", [], 2 * 2),
        ("linear_attention_step", [], 1),
        ("random_features", [], 3 * 2),
        ("sequence_pool", [], 2 * 2),
        ("Performer", ["--kinds", "causal"], 2),
        ("CosformerAttention", ["--kinds", "noncausal"], 2),
        ("LinearAttention", ["--kinds", "noncausal,causal"], 2 * 2),
        ("decoding", ["--kinds", "performer,linear"], 2),
    ],
)
def test_linear_attention_agrees(tmp_path, name, words, cases):
    # 150: neither a multiple of the chunks nor within one.
    code, records = bench(tmp_path, name, "--lengths", "150", "--peers", *words)
    assert code == 0
    assert len(records["cases"]) == cases
    for case in records["cases"]:
        assert case["error"] is None
        contenders = case["contenders"]
        assert not contenders["subquad"].get("leaks")
        for contender in contenders.values():
            assert contender["status"] in ("measured", "absent")
            if contender["status"] == "absent":
                assert "Error" not in contender["reason"]


def test_steps_have_no_backward_pass(tmp_path):
    options = ["--lengths", "16", "--backward"]
    for name in ("linear_attention_step", "decoding"):
        _, records = bench(tmp_path, name, *options)
        assert records["cases"] == []


def test_kinds_are_those_of_any_entry(tmp_path):
    options = ["--lengths", "64", "--kinds", "causal-relu", "--forward"]
    code, records = bench(tmp_path, "linear_attention", "window_attention", *options)
    assert code == 0
    assert [case["labels"]["kind"] for case in records["cases"]] == ["causal-relu"]


def test_a_wrong_result_of_the_library_is_refused(tmp_path, register_case, capsys):
    register_case(
        ("subquad", constant(torch.tensor([1.0, 2.01]))),
        ("plain", constant(torch.tensor([1.0, 2.0]))),
    )
    code, records = bench(tmp_path, "made")
    assert code == 1
    (case,) = records["cases"]
    assert "wrong: off by 0.005" in case["error"]
    assert "seconds" not in case["contenders"]["subquad"]
    assert "seconds" not in case["contenders"]["plain"]
    assert records["rates"] is None
    assert "wrong: off by 0.005" in capsys.readouterr().out


@pytest.mark.parametrize("wrong", [[1.0, float("nan")], [1.0, float("inf")], [1.0]])
def test_wrong_results_of_others_are_named(tmp_path, register_case, wrong, capsys):
    register_case(
        ("subquad", constant(torch.tensor([1.0, 2.0]))),
        ("other", constant(torch.tensor(wrong))),
    )
    code, records = bench(tmp_path, "made")
    assert code == 0
    other = records["cases"][0]["contenders"]["other"]
    assert other["status"] == "wrong"
    assert "seconds" not in other
    assert "- other: wrong: off by" in capsys.readouterr().out


def test_absent_contenders_are_named_with_the_reason(tmp_path, register_case, capsys):
    register_case(
        ("subquad", constant(torch.tensor([1.0, 2.0]))),
        ("missing", unavailable),
        ("broken", broken),
    )
    code, _ = bench(tmp_path, "made")
    printed = capsys.readouterr().out
    assert code == 0
    assert "- missing: no such thing here\n" in printed
    assert "- broken: RuntimeError: does not work\n" in printed


def test_a_library_that_fails_is_told(tmp_path, register_case):
    register_case(("subquad", broken))
    code, records = bench(tmp_path, "made")
    assert code == 1
    assert records["cases"][0]["error"] == "RuntimeError: does not work"


def test_a_peer_that_is_not_installed_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "local_attention", None)
    options = ["--lengths", "64", "--windows", "8", "--kinds", "block", "--forward"]
    bench(tmp_path, "window_attention", *options, "--against", "local-attention")
    printed = capsys.readouterr().out
    assert "- local-attention: not installed: pip install local-attention" in printed


def test_a_peer_that_cannot_be_imported_shows_its_error(tmp_path, monkeypatch, capsys):
    (tmp_path / "local_attention.py").write_text("import no_such_module_of_a_peer")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "local_attention", raising=False)
    options = ["--lengths", "64", "--windows", "8", "--kinds", "block", "--forward"]
    bench(tmp_path, "window_attention", *options, "--against", "local-attention")
    printed = capsys.readouterr().out
    assert "- local-attention: ModuleNotFoundError: No module named" in printed


def test_leaks_of_causal_cases_are_marked(tmp_path, register_case, monkeypatch, capsys):
    register_case(("subquad", constant(torch.tensor([1.0, 2.0]))))
    (case,) = registry._ENTRIES["made"].cases(registry.Options())

    def leaky(inputs, backward):
        return lambda: (torch.tensor([1.0, 2.0]) + inputs[0].sum(),)

    sums = Contender("sums", leaky, function="something else")
    case = dataclasses.replace(
        case,
        inputs=lambda: (torch.tensor([1.0, -1.0]),),
        contenders=[*case.contenders, sums],
        future=Future(axis=0, inputs=1),
    )
    entry = Entry("made", "for a test", lambda options: [case])
    monkeypatch.setitem(registry._ENTRIES, "made", entry)
    code, records = bench(tmp_path, "made")
    assert code == 0
    contenders = records["cases"][0]["contenders"]
    assert not contenders["subquad"]["leaks"]
    assert contenders["sums"]["leaks"]
    printed = capsys.readouterr().out
    assert "- sums: leaks: changing the future changes the past by" in printed
    assert "x!\n" in printed

    # Of the library it is an error.
    case = dataclasses.replace(case, contenders=[Contender("subquad", leaky)])
    entry = Entry("made", "for a test", lambda options: [case])
    monkeypatch.setitem(registry._ENTRIES, "made", entry)
    code, records = bench(tmp_path, "made")
    assert code == 1
    assert "reads the future" in records["cases"][0]["error"]


def test_slow_shared_work_is_measured_once(tmp_path, register_case, monkeypatch):
    register_case(("subquad", constant(torch.tensor([1.0, 2.0]))))
    (case,) = registry._ENTRIES["made"].cases(registry.Options())
    built = []

    def build(inputs, backward):
        built.append(1)
        return lambda: (torch.zeros(1),)

    slow = Contender("full", build, function="something else", share="full")
    case.contenders.append(slow)
    twice = Entry("made", "for a test", lambda options: [case, case])
    monkeypatch.setitem(registry._ENTRIES, "made", twice)
    monkeypatch.setattr(run, "_SHARED_SECONDS", 0.0)
    _, records = bench(tmp_path, "made")
    first, second = (case["contenders"]["full"] for case in records["cases"])
    assert len(built) == 1
    assert (first["status"], second["status"]) == ("measured", "shared")
    assert first["seconds"] == second["seconds"]


def test_a_contender_may_be_called_like_a_rate(tmp_path, register_case):
    calls = []

    def build(inputs, backward):
        return lambda: calls.append(1) or (torch.tensor([1.0, 2.0]),)

    register_case(("subquad", build), ("oneDNN", build), ("copy", build))
    _, records = bench(tmp_path, "made")
    contenders = records["cases"][0]["contenders"]
    for name in ("oneDNN", "copy"):
        ratio = contenders[name]["times_library"]
        assert 0.01 < ratio < 100  # that of a rate is in the thousands
    assert len(calls) >= 3 * 2


def test_names_are_unique():
    with pytest.raises(ValueError, match="must be unique, got projection twice"):
        entries()
        registry.register("projection", "again")(lambda options: [])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["window_atention"], "unknown benchmark 'window_atention'; did you mean"),
        (["--lengths", "0"], "expected a positive number, got '0'"),
        (["--lengths", "1k,x"], "expected a positive number, got 'x'"),
        (["--kinds", "round"], "got 'round'"),
        (["--repeats", "-1"], "expected a positive number"),
        (["--kinds", "slidng"], "did you mean 'sliding'?"),
        (["--against", "einsm"], "unknown contender 'einsm'; did you mean 'einsum'?"),
        (["qualty"], "unknown benchmark 'qualty'; did you mean 'quality'?"),
        (["projection", "scaling"], "stands first: subquad bench scaling"),
        (["--plot", "x.doc"], "expected a name that ends in .png, .svg, .pdf"),
        (["--plot", "no/x.png"], "cannot write no/x.png: No such file"),
        (["--nothing"], "unknown option '--nothing'"),
    ],
)
def test_bad_arguments(words, message, capsys):
    assert cli.main(["bench", *words]) == 2
    assert message in capsys.readouterr().err


def test_a_file_that_cannot_be_written(tmp_path, register_case):
    register_case(("subquad", constant(torch.tensor([1.0, 2.0]))))
    path = tmp_path / "no" / "bench.json"
    with pytest.raises(CommandError, match=r"cannot write .*bench.json: No such file"):
        benchmarks.main(["made", *QUICK, "--json", str(path)])


def test_lengths_are_read_with_factors():
    assert arguments.numbers("96,1k,1M") == (96, 1024, 1024**2)


@pytest.mark.parametrize(
    ("times", "words"),
    [
        ([0.5, 1.5, 2.0], "from L = 128 of 64 to 256"),
        ([1.5, 0.5, 2.0], "from L = 256 of 64 to 256"),
        ([0.5, 0.6, 0.7], "at none of these lengths up to 256"),
    ],
)
def test_crossover(times, words):
    cases = [
        {
            "labels": {"L": length, "pass": "both"},
            "error": None,
            "contenders": {"SDPA": {"median_seconds": 1.0, "times_library": t}},
        }
        for length, t in zip([64, 128, 256], times, strict=True)
    ]
    (line,) = report._crossovers(cases)
    assert line == f"- fwd+bwd: faster than softmax over all keys {words}"
