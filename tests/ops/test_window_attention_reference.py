"""The reference of window attention against loops over scalars."""

import math

import pytest
import torch

from subquad import reference
from tests import util


def philox_word(counter: int, offset: int, seed: int, word: int) -> int:
    """Philox4x32-10 on Python integers."""
    mask = 2**32 - 1
    c = [counter & mask, counter >> 32, offset & mask, offset >> 32]
    k = [seed & mask, seed >> 32]
    for _ in range(10):
        p, q = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [q >> 32 ^ c[1] ^ k[0], q & mask, p >> 32 ^ c[3] ^ k[1], p & mask]
        k = [k[0] + 0x9E3779B9 & mask, k[1] + 0xBB67AE85 & mask]
    return c[word]


def loop_attention(case, tensors):
    """Output, lse and weights by the definition, one logit at a time."""
    query, key, value = (tensors[name] for name in ("query", "key", "value"))
    B, H, L, D = query.shape
    S, M = value.shape[2:]
    C = case.C
    scale = case.options.get("scale", D**-0.5)
    dropout = case.options.get("dropout", 0)
    output = query.new_zeros(B, H, L, M)
    lse = query.new_full((B, H, L), -math.inf)
    weights = query.new_zeros(B, H, L, case.left + case.block + case.right)

    def term(name, h, *index):
        if name not in tensors:
            return torch.zeros(())
        table = tensors[name]
        return table[(h if table.shape[0] > 1 else 0, *index)]

    for b, r, i, line, pairs, limit in util.sight(case):
        for h in range(H):
            g = h // (H // key.shape[1])
            q = query[b, h, i]
            logits, values, columns, slots = [], [], [], []
            for slot, j in pairs:
                logit = scale * (q @ key[b, g, j]) + term("bias", h, line, slot)
                logit = logit + (q * term("relative_key", h, slot)).sum()
                if "key_bias" in tensors:
                    logit = logit + tensors["key_bias"][b, j]
                logits.append(logit)
                values.append(value[b, g, j])
                columns.append(j)
                slots.append(slot)
            for c in range(limit):
                relative = term("summary_relative_key", h, limit - 1 - c)
                logit = scale * (q @ tensors["summary_key"][r, g, c])
                logits.append(logit + (q * relative).sum())
                values.append(tensors["summary_value"][r, g, c])
                columns.append(S + c)
            if not logits:
                continue
            total = torch.stack(logits).logsumexp(0)
            lse[b, h, i] = total
            for slot, logit in zip(slots, logits, strict=False):
                weights[b, h, i, slot] = (logit - total).exp()
            for logit, v, column in zip(logits, values, columns, strict=True):
                weight = (logit - total).exp()
                if dropout:
                    n = ((b * H + h) * L + i) * (S + C) + column
                    seed, offset = case.options["dropout_state"]
                    word = philox_word(n // 4, offset, seed, n % 4)
                    keep = word * 2.0**-32 >= dropout
                    weight = weight / (1 - dropout) if keep else 0
                output[b, h, i] += weight * v
    return output, lse, weights


@pytest.mark.parametrize("case", util.CASES, ids=str)
def test_matches_loops(case):
    tensors = case.tensors()
    arguments = case.arguments()
    actual = util.results(reference.window_attention_with_lse, tensors, arguments)
    expected = util.results(lambda **t: loop_attention(case, t)[:2], tensors, {})
    assert actual.keys() == expected.keys()
    for name in actual:
        torch.testing.assert_close(actual[name], expected[name], msg=name)


@pytest.mark.parametrize("case", util.CASES, ids=str)
def test_weights_match_loops(case):
    tensors = case.tensors()
    arguments = case.arguments()
    _, lse, expected = loop_attention(case, tensors)
    for name in list(tensors):
        if name == "value" or name.startswith("summary"):
            del tensors[name]
    for name in list(arguments):
        if name.startswith(("dropout", "summar")):
            del arguments[name]
    actual = reference.window_attention_weights(lse=lse, **tensors, **arguments)
    torch.testing.assert_close(actual, expected)


def test_cases_cover_the_schema():
    """No option of the operator is without a case."""
    schema = torch.ops.subquad.window_attention.default._schema
    covered = {"block", "left", "right"}
    for case in util.CASES:
        covered |= case.shape.keys() | case.options.keys()
    assert covered == {argument.name for argument in schema.arguments}


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        # Known answers that come with the generator's authors' implementation.
        (0, 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (
            2**128 - 1,
            2**64 - 1,
            (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
        ),
    ],
)
def test_philox_known_answers(counter, key, words):
    def signed(x):
        return torch.tensor(x - 2**64 if x >= 2**63 else x)

    halves = signed(counter % 2**64), signed(counter >> 64)
    assert tuple(reference.philox(halves, signed(key)).tolist()) == words


def test_dropout_keeps_its_share():
    keep = reference.keep_mask(torch.arange(100_000), 0.3, torch.tensor([5, 1]))
    assert abs(keep.double().mean() - 0.7) < 0.006  # four standard deviations


def test_sees_nothing_non_finite_outside_its_window():
    case = next(case for case in util.CASES if case.name == "block-overlap-causal")
    clean = util.results(
        reference.window_attention_with_lse, case.tensors(), case.arguments()
    )
    for poison in (math.nan, math.inf):
        tensors = case.tensors()
        for name in ("query", "key", "value"):
            tensors[name][:, :, 15:] = poison  # the last block
        poisoned = util.results(
            reference.window_attention_with_lse, tensors, case.arguments()
        )
        # Position 13 and 14 see up to 17 without causality, nothing late with it.
        for name in ("output", "lse", "grad_query"):
            util.assert_same_bits(poisoned[name][:, :, :15], clean[name][:, :, :15])
        for name in ("grad_key", "grad_value"):
            util.assert_same_bits(poisoned[name][:, :, :13], clean[name][:, :, :13])


def test_works_under_torch_func():
    case = next(case for case in util.CASES if case.name == "all")
    tensors, arguments = case.tensors(), case.arguments()

    def loss(tensors):
        return reference.window_attention(**tensors, **arguments).square().sum()

    leaves = {k: v.requires_grad_() for k, v in case.tensors().items()}
    expected = torch.autograd.grad(loss(leaves), list(leaves.values()))
    actual = torch.func.grad(loss)(tensors)
    for name, grad in zip(leaves, expected, strict=True):
        torch.testing.assert_close(actual[name], grad)
