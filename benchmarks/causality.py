"""Whether a contender of a causal case reads the future."""

from __future__ import annotations

import torch
from torch import Tensor

from subquad.benchmarks.registry import Case, Contender, Results

# A change of the past beyond this share of its largest number is a leak.
TOLERANCE = 1e-4
_LONGEST = 192  # tokens looked at
_CUTS = (0.1, 0.35, 0.5, 0.65, 0.9)
_FACTOR = -10.0  # large enough for statistics over all tokens to move


def past_change(case: Case, contender: Contender) -> float:
    """Largest change of results before a cut when all inputs after it change.

    Args:
        case: With a ``future``.
        contender: Anything that computes it.

    Returns:
        The change relative to the largest result, over several cuts.
    """
    future = case.future
    if future is None:
        raise ValueError("past_change: needs a causal case, got one without a future")
    inputs = [x.detach() for x in case.inputs()]
    length = min(inputs[0].shape[future.axis], _LONGEST)
    for i in range(future.inputs):
        inputs[i] = inputs[i].narrow(future.axis, 0, length).contiguous()

    def result(tokens: list[Tensor]) -> Tensor:
        copies: Results = tuple(x.clone() for x in tokens)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # a peer draws its parameters when it is built
            return contender.build(copies, False)()[0].detach().double()

    before = result(inputs)
    changes = [0.0]
    for cut in sorted({int(share * length) for share in _CUTS} - {0}):
        changed = [x.clone() for x in inputs]
        for x in changed[: future.inputs]:
            x.narrow(future.axis, cut, length - cut).mul_(_FACTOR)
        past = [x.narrow(future.axis, 0, cut) for x in (before, result(changed))]
        changes.append(float((past[0] - past[1]).abs().max()))
    return max(changes) / float(before.abs().max())
