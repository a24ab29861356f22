"""Random features of tokens."""

import torch
from torch import Tensor


def random_features(
    input: Tensor,
    projection: Tensor,
    kind: str = "positive",
    stabilizer: str = "token",
    stabilizer_gradient: bool = True,
    eps: float = 0.0,
    scale: float | None = None,
    initial_log_scale: Tensor | None = None,
    lengths: Tensor | None = None,
    starts: Tensor | None = None,
    order: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Features whose products estimate a kernel between tokens.

    With a = ``scale``, :math:`p = a\,W x` and :math:`n = a^2 \lVert x \rVert^2 / 2`:

    - ``"positive"``: :math:`R^{-1/2} e^{p - n - m} + \mathtt{eps}`, for the softmax
      kernel (Choromanski et al. 2021, arXiv 2009.14794, lemma 1),
    - ``"trigonometric"``: :math:`R^{-1/2} e^{n - m} [\sin p, \cos p] + \mathtt{eps}`,
      for the softmax kernel (Peng et al. 2021, arXiv 2103.02143),
    - ``"sincos"``: :math:`R^{-1/2} [\sin p, \cos p] + \mathtt{eps}`, for the Gaussian
      kernel (Rahimi and Recht 2007),
    - ``"relu"``: :math:`\max(R^{-1/2} p, 0) + \mathtt{eps}`.

    The log scale m is a maximum that keeps the exponential bounded: of p over the
    features for ``"positive"``, of n for ``"trigonometric"``. ``stabilizer`` says over
    which tokens: ``"none"`` (m = 0), ``"token"``, ``"row"``, or ``"prefix"``, the
    tokens up to this one, so that nothing comes from the future. Queries take
    ``"token"``; keys ``"row"``, or ``"prefix"`` for causal
    :func:`linear_attention` with the log scale as ``key_log_scale``.

    Args:
        input: ``[B, H, L, D]``.
        projection: ``[Hp, R, D]``, H a multiple of Hp; the rows W of each head.
        kind: See above.
        stabilizer: See above; ``"none"`` for ``"sincos"`` and ``"relu"``.
        stabilizer_gradient: Whether gradients flow through m; tokens or features that
            share a maximum share its gradient, with ``"prefix"`` the last token gets
            it.
        eps: Added to every feature.
        scale: Default ``D ** -0.25``.
        initial_log_scale: ``[rows, H]``, float32 (float64 for float64): m is at least
            this, as when the row continues an earlier one.
        lengths: ``[B]`` int64, valid tokens of each row. Others are never read.
        starts: ``[B]`` int64, index of the first of them, default 0.
        order: ``[B, L]`` int64, for valid tokens that lie scattered: row b is the
            tokens ``order[b, :lengths[b]]``, in this order.
        cu_seqlens: ``[rows + 1]`` int64, bounds of rows packed into a batch of one.

    Returns:
        Features ``[B, H, L, R]`` (``[B, H, L, 2 * R]`` for sin and cos) in the dtype of
        ``input``, and m, ``[B, H, L]`` in float32 (float64 for float64). Zeros for
        tokens that are in no row.

    Raises:
        ValueError: A shape, size, name or span is wrong.
        TypeError: A dtype is wrong.

    Example:
        >>> import torch
        >>> from subquad.functional import random_features
        >>> x, projection = torch.zeros(1, 1, 2, 4), torch.zeros(1, 4, 4)
        >>> features, log_scale = random_features(x, projection)
        >>> features[0, 0, 0].tolist(), log_scale.tolist()
        ([0.5, 0.5, 0.5, 0.5], [[[0.0, 0.0]]])
    """
    outputs: tuple[Tensor, Tensor] = torch.ops.subquad.random_features(
        input,
        projection,
        kind=kind,
        stabilizer=stabilizer,
        stabilizer_gradient=stabilizer_gradient,
        eps=eps,
        scale=scale,
        initial_log_scale=initial_log_scale,
        lengths=lengths,
        starts=starts,
        order=order,
        cu_seqlens=cu_seqlens,
    )
    return outputs
