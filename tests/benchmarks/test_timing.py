import pytest
import torch

from subquad.benchmarks import machine
from subquad.benchmarks.timing import estimate, interleave, spread


def test_turns_rotate_and_repeat_short_calls():
    calls = []
    runs = {name: lambda name=name: calls.append(name) for name in "abc"}
    # A turn of 10 ms: four calls of 2.5 ms, after one that warms the caches.
    times = interleave(runs, dict.fromkeys("abc", 0.0025), 2)
    assert (
        calls == ["a"] * 5 + ["b"] * 5 + ["c"] * 5 + ["b"] * 5 + ["c"] * 5 + ["a"] * 5
    )
    assert [len(times[name]) for name in "abc"] == [2, 2, 2]


def test_slow_runs_take_part_in_fewer_rounds():
    calls = []
    runs = {name: lambda name=name: calls.append(name) for name in ("slow", "long")}
    times = interleave(runs, {"slow": 1.4, "long": 60.0}, 5)
    assert len(times["slow"]) == 2
    assert len(times["long"]) == 1
    assert calls.count("slow") == 2  # none of them untimed


def test_spread_is_that_of_the_quartiles():
    assert spread([1.0, 2.0]) == 0
    assert spread([1.0, 2.0, 3.0, 4.0, 5.0]) == pytest.approx(2 / 3)


def test_rates_take_the_faster_product():
    flops, moved = machine.PRODUCT_FLOPS, machine.COPY_BYTES
    rates = machine.rates({"at::mm": 2.0, "oneDNN": 1.0, machine.COPY: 4.0})
    assert rates["product"] == "oneDNN"
    assert rates["flops_per_second"] == flops
    assert rates["products"] == {"at::mm": flops / 2, "oneDNN": flops}
    assert rates["copy_bytes_per_second"] == moved / 4


def test_rate_runs_do_what_they_count():
    runs = machine.rate_runs()
    (copied,) = runs[machine.COPY]()
    assert 2 * copied.nbytes == machine.COPY_BYTES
    products = [run()[0] for name, run in runs.items() if name != machine.COPY]
    for product in products:
        assert 2 * product.shape[0] ** 3 == machine.PRODUCT_FLOPS
        torch.testing.assert_close(product, products[0], rtol=1e-4, atol=1e-3)
    assert all(estimate(run) > 0 for run in runs.values())
