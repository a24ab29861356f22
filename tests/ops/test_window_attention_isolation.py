"""What must not touch a result of window attention, bit for bit.

Keys a query does not see, padding, other rows of the batch, memory that was never
written, the number of threads.
"""

import dataclasses
import functools
import math
import random
import sys

import pytest
import torch

from subquad import functional
from tests import util

op = functional.window_attention_with_lse
BY_NAME = {case.name: case for case in util.CASES + util.LARGE_CASES}
POISONS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


class Sight:
    """Which queries, keys and summaries touch one another, by loops."""

    @classmethod
    @functools.cache
    def of(cls, name):
        """The loops are slow: once for each case."""
        return cls(BY_NAME[name])

    def __init__(self, case):
        S = case.shape["key"][2]
        R = case.R
        self.keys = torch.zeros(case.B, case.L, case.B, S, dtype=torch.bool)
        self.summaries = torch.zeros(case.B, case.L, R, case.C, dtype=torch.bool)
        W = case.left + case.block + case.right
        self.bias = torch.zeros(case.block, W, dtype=torch.bool)
        self.relative = torch.zeros(W, dtype=torch.bool)
        self.summary_relative = torch.zeros(case.C + 1, dtype=torch.bool)
        for b, r, i, line, pairs, limit in util.sight(case):
            for slot, j in pairs:
                self.keys[b, i, b, j] = True
                self.bias[line, slot] = True
                self.relative[slot] = True
            self.summaries[b, i, r, :limit] = True
            self.summary_relative[:limit] = True
        self.queries = self.keys.flatten(2).any(2) | self.summaries.flatten(2).any(2)

    def touched(self, queries, keys, summaries):
        """Queries, keys and summaries whose results may change.

        ``queries`` [B, L], ``keys`` [B, S] and ``summaries`` [R, C] are True for
        what was poisoned.
        """
        queries = (
            queries
            | (self.keys & keys).flatten(2).any(2)
            | (self.summaries & summaries).flatten(2).any(2)
        )
        by_query = queries[:, :, None, None]
        keys = keys | (self.keys & by_query).flatten(0, 1).any(0)
        summaries = summaries | (self.summaries & by_query).flatten(0, 1).any(0)
        return queries, keys, summaries


def poisoned(tensors, gradients, poison, queries, keys, summaries):
    """Copies with the marked queries, keys and summaries poisoned."""
    tensors = {name: x.clone() for name, x in tensors.items()}
    gradients = tuple(x.clone() for x in gradients)
    for x in (tensors["query"], *gradients):
        x.transpose(1, 2)[queries] = poison
    for name in ("key", "value"):
        tensors[name].transpose(1, 2)[keys] = poison
        if "summary_" + name in tensors:
            tensors["summary_" + name].transpose(1, 2)[summaries] = poison
    if "key_bias" in tensors:
        tensors["key_bias"][keys] = poison
    return tensors, gradients


def assert_untouched(actual, expected, queries, keys, summaries):
    """Same bits wherever the masks (True: may change) are False."""
    masks = {
        "output": ~queries,
        "lse": ~queries,
        "grad_query": ~queries,
        "grad_key": ~keys,
        "grad_value": ~keys,
        "grad_key_bias": ~keys,
        "grad_summary_key": ~summaries,
        "grad_summary_value": ~summaries,
    }
    for name, mask in masks.items():
        if name not in actual:
            continue
        x = actual[name]
        mask = mask.to(x.device)
        if x.dim() > 2:
            mask = mask[:, None]
        if x.dim() > 3:
            mask = mask[..., None]
        util.assert_same_bits(x, expected[name], mask.expand(x.shape), name)


def none_of(case):
    """Masks of no query, no key and no summary."""
    return (
        torch.zeros(case.B, case.L, dtype=torch.bool),
        torch.zeros(case.B, case.shape["key"][2], dtype=torch.bool),
        torch.zeros(case.R, case.C, dtype=torch.bool),
    )


def gradients_for(tensors, arguments):
    with torch.no_grad():
        return util.output_gradients(*op(**tensors, **arguments))


def check_cuts(case, dtype, device, cuts, poisons):
    """Poison everything from each cut on, and everything before it."""
    tensors, arguments = case.tensors(dtype, device), case.arguments(device)
    gradients = gradients_for(tensors, arguments)
    clean = util.results(op, tensors, arguments, gradients)
    sight = Sight.of(case.name)
    for cut in cuts:
        for after in (True, False):
            bad = none_of(case)
            for mask in bad:
                (mask[:, cut:] if after else mask[:, :cut]).fill_(True)
            touched = sight.touched(*bad)
            for poison in poisons:
                worse = poisoned(tensors, gradients, poison, *bad)
                actual = util.results(op, worse[0], arguments, worse[1])
                assert_untouched(actual, clean, *touched)


@pytest.mark.parametrize("poison", POISONS.values(), ids=POISONS)
@pytest.mark.parametrize("case", util.CASES, ids=str)
def test_no_leak_at_any_cut(case, poison, device):
    cuts = range(max(case.L, case.shape["key"][2]) + 1)
    check_cuts(case, torch.float32, device, cuts, [poison])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("case", util.CASES, ids=str)
def test_no_leak_in_other_dtypes(case, dtype, device):
    size = max(case.L, case.shape["key"][2])
    check_cuts(case, dtype, device, range(1, size, 4), [math.nan, math.inf])


@pytest.mark.parametrize(
    ("dtype", "poison"),
    [(torch.float32, math.nan), (torch.float32, math.inf), (torch.float16, math.nan)],
    ids=str,
)
@pytest.mark.parametrize("case", util.LARGE_CASES, ids=str)
def test_no_leak_between_tiles(case, dtype, poison, device):
    cuts = [*random.Random(0).sample(range(1, case.L), 3), 64, 512]
    check_cuts(case, dtype, device, cuts, [poison])


def check_single_tokens(case, dtype, device, kinds, poisons):
    """Poison a few queries, keys or summaries (as ``kinds`` says) among good ones."""
    tensors, arguments = case.tensors(dtype, device), case.arguments(device)
    gradients = gradients_for(tensors, arguments)
    clean = util.results(op, tensors, arguments, gradients)
    generator = torch.Generator().manual_seed(0)
    for poison in poisons:
        bad = []
        for mask, kind in zip(none_of(case), kinds, strict=True):
            chance = kind * min(0.2, 2 / max(mask.shape[1], 1))
            bad.append(torch.rand(mask.shape, generator=generator) < chance)
        worse = poisoned(tensors, gradients, poison, *bad)
        actual = util.results(op, worse[0], arguments, worse[1])
        assert_untouched(actual, clean, *Sight.of(case.name).touched(*bad))


@pytest.mark.parametrize("kinds", [(1, 0, 0), (0, 1, 0), (0, 0, 1)], ids=str)
@pytest.mark.parametrize("case", util.CASES, ids=str)
def test_no_leak_from_single_tokens(case, kinds, device):
    check_single_tokens(case, torch.float32, device, kinds, POISONS.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", util.LARGE_CASES, ids=str)
def test_no_leak_from_single_tokens_in_tiles(case, dtype, device):
    check_single_tokens(case, dtype, device, (1, 1, 1), [math.nan, math.inf])


@pytest.mark.parametrize("case", util.CASES, ids=str)
def test_nan_reaches_those_who_see_it(case, device):
    """A NaN in one key or value: all queries that see it, and no other."""
    tensors, arguments = case.tensors(torch.float32, device), case.arguments(device)
    clean_output, clean_lse = op(**tensors, **arguments)
    sight = Sight.of(case.name)
    for b in range(case.B):
        for j in range(0, case.shape["key"][2], 3):
            viewers = sight.keys[:, :, b, j]
            seen = viewers[:, None].expand(clean_lse.shape).to(device)
            for name in ("key", "value"):
                worse = {**tensors, name: tensors[name].clone()}
                worse[name][b, :, j] = math.nan
                output, lse = op(**worse, **arguments)
                wide = seen[..., None].expand(output.shape)
                util.assert_same_bits(output, clean_output, ~wide, name)
                util.assert_same_bits(lse, clean_lse, ~seen | (name == "value"), name)
                if name == "key":
                    assert lse[seen].isnan().all()
                if not arguments.get("dropout"):
                    assert output[seen].isnan().all(), name


def unseen(case):
    """Masks of queries that see nothing, and of what no query sees."""
    sight = Sight.of(case.name)
    keys = ~sight.keys.flatten(0, 1).any(0)
    return ~sight.queries, keys, ~sight.summaries.flatten(0, 1).any(0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", util.CASES + util.LARGE_CASES, ids=str)
def test_padding_is_absence(case, dtype, device):
    """What nobody sees changes no bit, and has gradients of zero."""
    tensors, arguments = case.tensors(dtype, device), case.arguments(device)
    gradients = gradients_for(tensors, arguments)
    sight, masks = Sight.of(case.name), unseen(case)
    clean = util.results(op, tensors, arguments, gradients)
    tables = {
        "bias": sight.bias,
        "relative_key": sight.relative,
        "summary_relative_key": sight.summary_relative,
    }
    for poison in POISONS.values():
        worse, worse_gradients = poisoned(tensors, gradients, poison, *masks)
        for name, used in tables.items():
            if name in worse:
                worse[name][:, ~used] = poison
        actual = util.results(op, worse, arguments, worse_gradients)
        for name, result in actual.items():
            util.assert_same_bits(result, clean[name], name=name)
    queries, keys, summaries = masks
    assert not clean["output"].transpose(1, 2)[queries].any()
    assert (clean["lse"].transpose(1, 2)[queries] == -math.inf).all()
    assert not clean["grad_query"].transpose(1, 2)[queries].any()
    for name in ("key", "value"):
        assert not clean[f"grad_{name}"].transpose(1, 2)[keys].any()
        if case.C:
            grad = clean[f"grad_summary_{name}"]
            assert not grad.transpose(1, 2)[summaries].any()


@pytest.mark.parametrize(
    "case", [c for c in util.CASES + util.LARGE_CASES if c.B > 1], ids=str
)
def test_rows_do_not_touch(case, device):
    """Other numbers in other rows change no bit of a row."""
    tensors, arguments = case.tensors(torch.float32, device), case.arguments(device)
    gradients = gradients_for(tensors, arguments)
    expected = util.results(op, tensors, arguments, gradients)
    others = case.tensors(torch.float32, device, seed=1)
    for b in range(case.B):
        mixed = {}
        for name, x in tensors.items():
            mixed[name] = x.clone()
            if x.shape[0] == case.B and (x.dim() == 4 or name == "key_bias"):
                mixed[name] = others[name].clone()
                mixed[name][b] = x[b]
        actual = util.results(op, mixed, arguments, gradients)
        for name, result in actual.items():
            if result.dim() == 4 or name in ("lse", "grad_key_bias"):
                util.assert_same_bits(result[b], expected[name][b], name=name)


def row_alone(case, b):
    """Row ``b`` of a case as a batch of 1, and how to cut its tensors."""
    options = {}
    for name, option in case.options.items():
        if (
            isinstance(option, list)
            and len(option) == case.B
            and name != "dropout_state"
        ):
            option = option[b : b + 1]
        options[name] = option
    return dataclasses.replace(case, B=1, options=options)


@pytest.mark.parametrize(
    "case",
    # The number of a weight, and so dropout, depends on its row.
    [c for c in util.CASES if c.B > 1 and "dropout" not in c.options],
    ids=str,
)
def test_row_alone(case, device):
    tensors, arguments = case.tensors(torch.float32, device), case.arguments(device)
    output, lse = op(**tensors, **arguments)
    for b in range(case.B):
        alone = {
            name: x[b : b + 1] if x.dim() == 4 or name == "key_bias" else x
            for name, x in tensors.items()
        }
        found = op(**alone, **row_alone(case, b).arguments(device))
        for actual, expected in zip(found, (output, lse), strict=True):
            torch.testing.assert_close(
                actual, expected[b : b + 1], rtol=1e-6, atol=1e-6
            )


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("case", util.CASES + util.LARGE_CASES, ids=str)
def test_unwritten_memory(case, device, request):
    """``at::empty`` filled with NaN changes no bit: everything is written."""
    tensors, arguments = case.tensors(torch.float32, device), case.arguments(device)
    gradients = gradients_for(tensors, arguments)
    expected = util.results(op, tensors, arguments, gradients)
    request.getfixturevalue("deterministic")
    assert torch.empty(3, device=device).isnan().all()
    actual = util.results(op, tensors, arguments, gradients)
    for name, result in actual.items():
        util.assert_same_bits(result, expected[name], name=name)


DIGEST = """
import hashlib
import torch
from subquad import functional
from tests import util

digest = hashlib.sha256()
for case in util.CASES + util.LARGE_CASES:
    for dtype in (torch.float32, torch.bfloat16):
        found = util.results(
            functional.window_attention_with_lse, case.tensors(dtype), case.arguments()
        )
        for name, result in found.items():
            digest.update(util.bits(result).numpy().tobytes())
print(digest.hexdigest())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc fills memory")
def test_unwritten_workspace():
    """Memory that malloc filled with other garbage gives the same bits."""
    digests = {
        util.run_python(
            "-c",
            DIGEST,
            MALLOC_PERTURB_=garbage,
            GLIBC_TUNABLES="glibc.malloc.tcache_count=0",
        )
        for garbage in ("1", "129")  # 0xFE.. is huge and negative, 0x7E.. positive
    }
    assert len(digests) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", util.CASES + util.LARGE_CASES, ids=str)
def test_deterministic(case, dtype, device):
    """Two runs, and runs of one and two threads, give the same bits."""
    tensors, arguments = case.tensors(dtype, device), case.arguments(device)
    gradients = gradients_for(tensors, arguments)
    threads = torch.get_num_threads()
    try:
        runs = []
        for count in (1, 2, 2, 3):
            torch.set_num_threads(count)
            runs.append(util.results(op, tensors, arguments, gradients))
    finally:
        torch.set_num_threads(threads)
    for run in runs[1:]:
        for name, result in run.items():
            util.assert_same_bits(result, runs[0][name], name=name)
