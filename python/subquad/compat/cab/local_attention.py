"""Local attention with the project's treatment of masks."""

from argparse import ArgumentParser
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from subquad import nn
from subquad.compat.cab.base import AbstractAttention, warn_unknown
from subquad.errors import UnsupportedPattern
from subquad.nn.arguments import add_nested_argument
from subquad.nn.base import lookup
from subquad.nn.rows import Rows

_NO_CROSS = (
    "LocalAttention cannot do cross attention now; subquad.nn.LocalAttention can"
)


class LocalAttention(AbstractAttention, nn.LocalAttention):
    """:class:`subquad.nn.LocalAttention` as the project has it.

    With a ``key_padding_mask`` a slot of the window is hidden only if it is out of
    range *and* the nearest token in range is padding: padding is attended to, and
    slots out of range repeat the first or last token. While decoding, all tokens of
    a call see each other, ``causal`` or not, and where a mask was given before but
    not in this call, the mask of a full window does not move along.

    Args:
        wsize: Window on each side, or in all when causal.
        embed_dim: Features of query and output.
        num_heads: Heads, a divisor of ``embed_dim``.
        dropout: Probability of dropping an attention weight in training.
        bias: Whether the projections have one.
        kdim: Features of the key input.
        vdim: Features of the value input.
        cross: Refused.
        causal: A query sees no token that comes after it.
        **unknown: Accepted with a warning.

    Raises:
        UnsupportedPattern: ``cross=True``, or ``num_heads`` does not divide
            ``embed_dim``.
    """

    def __init__(
        self,
        wsize: int = 15,
        *,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        kdim: int | None = None,
        vdim: int | None = None,
        cross: bool = False,
        causal: bool = False,
        **unknown: Any,
    ) -> None:
        """Build the module."""
        nn.LocalAttention.__init__(
            self,
            embed_dim,
            num_heads,
            window_size=wsize,
            dropout=dropout,
            bias=bias,
            kdim=kdim,
            vdim=vdim,
            causal=causal,
        )
        if cross:
            raise UnsupportedPattern(_NO_CROSS)
        warn_unknown(self.title, unknown)
        self.wsize = wsize

    @staticmethod
    def add_attn_specific_args(parent_parser: ArgumentParser) -> ArgumentParser:
        """Add ``--wsize`` and ``--causal``."""
        group = parent_parser.add_argument_group("Attention")
        add_nested_argument(group, "--wsize", type=int, default=15)
        add_nested_argument(group, "--causal", action="store_true")
        return parent_parser

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
        """Attend; arguments as :meth:`subquad.nn.LocalAttention.forward`.

        ``query_padding_mask`` and ``attn_mask`` have no effect.
        """
        warn_unknown(self.title, unknown)
        if static_kv and incremental_state is not None:
            raise UnsupportedPattern(_NO_CROSS)
        return self._run(
            query,
            key,
            value,
            None,
            key_padding_mask,
            incremental_state,
            need_weights,
            need_head_weights,
            False,
            None,
            False,
            batch_first,
        )

    def _attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        queries: Rows,
        keys: Rows,
        offset: Tensor | None,
        attn_mask: Tensor | None,
        need_weights: bool,
    ) -> tuple[Tensor, Tensor | None]:
        padding = keys.padding
        dropping = self.training and self.dropout > 0
        if padding is None and not need_weights and not dropping:
            return super()._attend(
                q, k, v, queries, keys, offset, attn_mask, need_weights
            )
        length = k.size(2)
        slots = torch.arange(-self.left, self.right + 1, device=k.device)
        index = torch.arange(length, device=k.device).unsqueeze(1) + slots  # [L, W]
        hidden = (index < 0) | (index >= length)
        index = index.clamp(0, max(length - 1, 0))
        if padding is not None:
            hidden = hidden & padding[:, index].unsqueeze(1)  # [B, 1, L, W]
        k, v = k[:, :, index], v[:, :, index]  # [B, H, L, W, D]
        logits = torch.einsum("bhld,bhlwd->bhlw", q * self.head_dim**-0.5, k)
        return self._weigh(logits, hidden, "bhlw,bhlwd->bhld", v, need_weights)

    def _step(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        queries: Rows,
        keys: Rows,
        state: dict[str, Tensor | None],
        attn_mask: Tensor | None,
        need_weights: bool,
    ) -> tuple[Tensor, Tensor | None]:
        count = k.size(2)
        prev_key, prev_value = lookup(state, "prev_key"), lookup(state, "prev_value")
        if prev_key is not None and prev_value is not None:
            k = torch.cat((prev_key, k), 2)[:, :, -self.wsize :]
            v = torch.cat((prev_value, v), 2)[:, :, -self.wsize :]
        before, after = lookup(state, "prev_key_padding_mask"), keys.padding
        size, padding = k.size(2), before
        if before is not None and after is not None:
            padding = torch.cat((before, after.to(before.dtype)), 1)[:, -self.wsize :]
        elif before is not None and size > before.size(1):
            padding = F.pad(before, [0, size - before.size(1)])
        elif after is not None:
            padding = F.pad(after.float(), [max(size - count, 0), 0])
        state["prev_key"] = k
        state["prev_value"] = v
        state["prev_key_padding_mask"] = padding
        logits = torch.einsum("bhld,bhsd->bhls", q * self.head_dim**-0.5, k)
        hidden = torch.zeros_like(logits[:, :1, :1], dtype=torch.bool)
        if padding is not None:
            hidden = padding.to(torch.bool)[:, None, None]
        return self._weigh(logits, hidden, "bhls,bhsd->bhld", v, need_weights)

    def _weigh(
        self, logits: Tensor, hidden: Tensor, product: str, v: Tensor, need: bool
    ) -> tuple[Tensor, Tensor | None]:
        # Where every slot is hidden: zeros.
        weights = logits.masked_fill(hidden, float("-inf"))
        empty = hidden.all(-1, keepdim=True)
        weights = weights.masked_fill(empty, 0.0).softmax(-1).masked_fill(empty, 0.0)
        kept = F.dropout(weights.flatten(0, 1), self.dropout, self.training)
        output = torch.einsum(product, kept.view_as(weights), v)
        return output, weights if need else None
