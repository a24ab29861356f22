import os
import sys

import pytest
import torch

from subquad.benchmarks.memory import ENDED, peak_extra_bytes, serve_memory
from subquad.benchmarks.registry import Options, entries

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="the peak is read from /proc"
)

MIB = 1 << 20


def test_peak_counts_what_is_neither_there_before_nor_returned():
    before = torch.ones(16 * MIB)

    def run():
        temporary = torch.ones(16 * MIB)  # 64 MiB each
        return (temporary + before,)

    assert peak_extra_bytes(run) == pytest.approx(64 * MIB, abs=2 * MIB)


def test_server_measures_contenders_in_processes_of_their_own():
    options = Options(lengths=(1024,), windows=(32,), kinds=("causal",))
    first, both = entries()["window_attention"].cases(options)
    with serve_memory(threads=1) as server:
        plain = server.case_bytes(both, "einsum", options)
        ours = server.case_bytes(both, "subquad", options)
        unknown = server.case_bytes(first, "nobody", options)
    # The band alone: 8 heads, 1024 queries, 63 keys, twice.
    assert plain > 8 * 1024 * 63 * 4 * 2
    assert ours < plain
    assert isinstance(unknown, str)


def end_process(length):
    os._exit(3)


def test_server_outlives_a_run_that_ends_its_process():
    with serve_memory(threads=1) as server:
        for _ in range(2):
            answer = server.extra_bytes(f"{__name__}:end_process", 8, {})
            assert answer.startswith(ENDED)
