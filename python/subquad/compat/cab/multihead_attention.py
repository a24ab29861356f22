"""Softmax attention with the project's habits."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from subquad import nn
from subquad.compat.cab.base import AbstractAttention, warn_unknown
from subquad.reference.softmax_weights import softmax_weights


class MultiheadAttention(AbstractAttention, nn.MultiheadAttention):
    """:class:`subquad.nn.MultiheadAttention` as the project has it.

    ``cross`` and ``causal`` have no effect, a bool ``attn_mask`` is added to the
    logits as 0 and 1, padded queries are computed like others, and attention weights
    are drawn and dropped as ``[B * H, L, S]``.

    Args:
        embed_dim: Features of query and output.
        num_heads: Heads, a divisor of ``embed_dim``.
        dropout: Probability of dropping an attention weight in training.
        bias: Whether the projections have one.
        add_bias_kv: Append a learned key and value.
        add_zero_attn: Append a key and value of zeros.
        kdim: Features of the key input.
        vdim: Features of the value input.
        cross: Kept as an attribute.
        causal: Kept as an attribute.
        **unknown: Accepted with a warning.

    Raises:
        UnsupportedPattern: ``num_heads`` does not divide ``embed_dim``.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        cross: bool = False,
        causal: bool = False,
        **unknown: Any,
    ) -> None:
        """Build the module."""
        nn.MultiheadAttention.__init__(
            self,
            embed_dim,
            num_heads,
            dropout=dropout,
            bias=bias,
            add_bias_kv=add_bias_kv,
            add_zero_attn=add_zero_attn,
            kdim=kdim,
            vdim=vdim,
        )
        warn_unknown(self.title, unknown)
        self.cross, self.causal = cross, causal

    def forward(  # type: ignore[override]
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        query_padding_mask: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        need_head_weights: bool = False,
        attn_mask: Tensor | None = None,
        static_kv: bool = False,
        incremental_state: dict[str, dict[str, Tensor | None]] | None = None,
        batch_first: bool = False,
        **unknown: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend; arguments as :meth:`subquad.nn.MultiheadAttention.forward`.

        ``query_padding_mask`` has no effect.
        """
        warn_unknown(self.title, unknown)
        if attn_mask is not None and not attn_mask.is_floating_point():
            attn_mask = attn_mask.to(torch.bool).to(query.dtype)
        return self._run(
            query,
            key,
            value,
            None,
            key_padding_mask,
            incremental_state,
            need_weights,
            need_head_weights,
            static_kv,
            attn_mask,
            static_kv or incremental_state is None,
            batch_first,
        )

    def _product(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
        causal: bool,
        need_weights: bool,
    ) -> tuple[Tensor, Tensor | None]:
        dropping = self.training and self.dropout > 0
        if not need_weights and not dropping:
            return super()._product(q, k, v, mask, causal, False)
        weights = softmax_weights(q, k, mask, causal)
        kept = F.dropout(weights.flatten(0, 1), self.dropout, self.training)
        output = torch.matmul(kept.view_as(weights), v)
        return output, weights if need_weights else None
