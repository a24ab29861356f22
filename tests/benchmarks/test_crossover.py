import math

import pytest

from subquad.benchmarks.crossover import crossing, crossovers


def test_crossing_of_powers_is_exact():
    # 32 x and x^2 / 4 meet at 128.
    lengths = (16, 64, 256, 1024)
    points = [(x, 32.0 * x, x * x / 4) for x in lengths]
    assert crossing(points) == pytest.approx(128)


@pytest.mark.parametrize(
    ("costs", "expected"),
    [
        ([(1, 2), (1, 2), (1, 2)], 10),
        ([(2, 1), (2, 1), (2, 1)], None),
        ([(1, 2), (1, 2), (2, 1)], None),
        ([(1, 2), (4, 1), (1, 4)], 20 * math.sqrt(2)),  # for good
        ([(4, 1), (1, 1), (1, 2)], 20),
    ],
)
def test_crossing_is_the_last(costs, expected):
    points = [(length, *cost) for length, cost in zip((10, 20, 40), costs, strict=True)]
    found = crossing(points)
    assert found == (expected if expected is None else pytest.approx(expected))


def case(entry, length, ours, softmax):
    return {
        "entry": entry,
        "labels": {"L": length, "pass": "both"},
        "contenders": {
            "subquad": {"median_seconds": ours, "extra_bytes": 1},
            "SDPA": {"median_seconds": softmax} if softmax else {},
        },
    }


def test_crossovers_of_groups():
    cases = [
        case("a", 100, 2.0, 1.0),
        case("b", 10, 1.0, 2.0),
        case("a", 400, 2.0, 4.0),
        case("c", 10, 1.0, 2.0),
        case("c", 20, 1.0, None),
    ]
    (found,) = crossovers(cases)
    assert found == {
        "entry": "a",
        "labels": {"pass": "both"},
        "quantity": "time",
        "length": pytest.approx(100 * 4 ** (1 / 2)),
        "measured": [100, 400],
    }
