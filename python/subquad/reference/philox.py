"""Philox4x32-10, the counter-based generator of the fused dropout."""

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_ROUNDS = 10
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


def philox(counter: tuple[Tensor, Tensor], state: Tensor) -> Tensor:
    """Four random words for each counter.

    Philox4x32-10 of Salmon et al. 2011, "Parallel random numbers: as easy as
    1, 2, 3". Words are kept in int64 tensors, and products wrap modulo 2**64,
    which leaves both of their 32-bit halves right.

    Args:
        counter: Lower and upper half of the 128-bit counter, int64; the upper
            expands to the shape of the lower.
        state: Key of the generator, int64, no dimension.

    Returns:
        Random words in [0, 2**32), int64, ``[*counter[0].shape, 4]``.
    """
    low, high = counter[0], counter[1].expand_as(counter[0])
    x = [low & _MASK, low >> 32 & _MASK, high & _MASK, high >> 32 & _MASK]
    k = [state & _MASK, state >> 32 & _MASK]
    for _ in range(_ROUNDS):
        p, q = x[0] * _MULTIPLIERS[0], x[2] * _MULTIPLIERS[1]
        x = [
            (q >> 32 & _MASK) ^ x[1] ^ k[0],
            q & _MASK,
            (p >> 32 & _MASK) ^ x[3] ^ k[1],
            p & _MASK,
        ]
        k = [k[0] + _WEYL[0] & _MASK, k[1] + _WEYL[1] & _MASK]
    return torch.stack(x, -1)


def keep_mask(index: Tensor, dropout: float, dropout_state: Tensor) -> Tensor:
    """Which weights dropout keeps.

    Weight ``n`` reads word ``n % 4`` of counter ``(n // 4, offset)`` under the
    key ``seed`` and is kept when ``word * 2**-32 >= dropout``. So a weight's fate
    depends on its place alone, and forward and backward agree without a mask.

    Args:
        index: Number ``n`` of each weight, int64.
        dropout: Probability of dropping a weight.
        dropout_state: Seed and offset, int64 ``[2]``.

    Returns:
        True where the weight is kept, of the shape of ``index``.
    """
    seed, offset = dropout_state.unbind()
    words = philox((index // 4, offset), seed)
    word = words.gather(-1, (index % 4)[..., None])[..., 0]
    return word.double() * 2.0**-32 >= dropout
