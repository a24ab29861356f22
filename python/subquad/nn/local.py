"""Attention to a window of neighbours."""

from argparse import ArgumentParser
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import Unpack

from subquad import functional
from subquad.errors import UnsupportedPattern
from subquad.nn.arguments import add_nested_argument
from subquad.nn.base import ProjectedAttention, lookup
from subquad.nn.options import AttentionOptions
from subquad.nn.registry import register_cls
from subquad.nn.rows import Rows, join_padding, token_positions


@register_cls
class LocalAttention(ProjectedAttention):
    r"""Softmax attention of each query to the keys around its centre.

    .. math::
        \mathrm{out}_i = \sum_{j \in N(i)}
        \mathrm{softmax}_{j \in N(i)}\!\left(q_i \cdot k_j / \sqrt{D}\right) v_j

    With w = ``window_size``, N(i) is ``i - w .. i + w``; causal: the w keys
    ``i - w + 1 .. i``. In cross-attention it is ``c(i) - w .. c(i) + w`` around
    ``c(i) = floor(i * S / L)`` with the row's own lengths, or ``c(i) = i`` when
    causal, because a decoder does not know its L (Luong et al. 2015,
    arXiv 1508.04025, local-m). Time and memory are linear in the length; decoding
    keeps w keys and values.

    Weights are indexed by slot: key ``j`` of query ``i`` is at ``j`` minus the first
    position of the window.

    Args:
        embed_dim: Features of query and output.
        num_heads: Query heads H, a divisor of ``embed_dim``.
        window_size: w, at least 1 when causal, else 0.
        **options: Those of :class:`ProjectedAttention`.

    Raises:
        ValueError: A negative or empty window.

    Example:
        >>> attention = LocalAttention(64, 4, window_size=8, causal=True)
        >>> attention(torch.randn(100, 2, 64))[0].shape
        torch.Size([100, 2, 64])
    """

    names: ClassVar[tuple[str, ...]] = ("local", "window")

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        window_size: int = 15,
        **options: Unpack[AttentionOptions],
    ) -> None:
        """Keep the window."""
        super().__init__(embed_dim, num_heads, **options)
        backward = self.causal and not self.cross
        if window_size < int(backward):
            raise ValueError(
                f"LocalAttention: window_size must be at least {int(backward)}, "
                f"got {window_size}"
            )
        self.window_size = window_size
        self.left = window_size - 1 if backward else window_size
        self.right = 0 if backward else window_size

    def extra_repr(self) -> str:
        """The window before the common options."""
        return f"window_size={self.window_size}, {super().extra_repr()}"

    @staticmethod
    def add_attn_specific_args(parent_parser: ArgumentParser) -> ArgumentParser:
        """Add ``--window-size``."""
        group = parent_parser.add_argument_group("Attention")
        add_nested_argument(
            group,
            "--window-size",
            type=int,
            default=15,
            help="keys on each side, or in all when causal (default: %(default)s)",
        )
        return parent_parser

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
        centre = self._centre(q, k, queries, keys, offset) if self.cross else None
        return self._window(q, k, v, queries, keys, 0, centre, need_weights)

    def _centre(
        self, q: Tensor, k: Tensor, queries: Rows, keys: Rows, offset: Tensor | None
    ) -> Tensor:
        # [L] or [B, L], in the keys' span coordinates.
        position = token_positions(queries, q, offset)
        if self.causal:
            return position
        if offset is not None:
            raise UnsupportedPattern(
                "LocalAttention: cross-attention that decodes needs causal=True, for "
                "the window of causal=False depends on the number of queries to come"
            )
        count, length = queries.lengths, keys.lengths  # [B]
        if length is None:
            position = position * k.size(2)
        else:
            position = position * length.unsqueeze(1)
        if count is None:
            return torch.div(position, q.size(2), rounding_mode="floor")
        count = count.clamp(min=1).unsqueeze(1)
        return torch.div(position, count, rounding_mode="floor")

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
        if not self.causal:
            raise UnsupportedPattern(
                "LocalAttention: decoding needs causal=True, for a window of "
                "causal=False reaches tokens to come"
            )
        past = 0
        prev_key, prev_value = lookup(state, "prev_key"), lookup(state, "prev_value")
        if prev_key is not None and prev_value is not None:
            past = prev_key.size(2)
            k = torch.cat((prev_key, k), 2)
            v = torch.cat((prev_value, v), 2)
        before = lookup(state, "prev_key_padding_mask")
        padding = join_padding(before, queries.padding, past, k)
        if padding is None:
            output, weights = self._window(
                q, k, v, queries, keys, past, None, need_weights
            )
            state["prev_key"] = _last(k, self.window_size)
            state["prev_value"] = _last(v, self.window_size)
            return output, weights

        # A row's valid tokens, cached and new, are one sequence.
        lengths, order = functional.mask_to_spans(padding)
        keys = Rows(padding, lengths, order)
        position = ((~padding).cumsum(1) - 1)[:, past:]
        output, weights = self._window(
            q, k, v, queries, keys, 0, position, need_weights
        )
        # The last valid ones of each row are kept, at the end.
        size = min(self.window_size, k.size(2))
        slot = torch.arange(-size, 0, device=k.device)
        rank = lengths.unsqueeze(1) + slot  # [B, size]
        state["prev_key_padding_mask"] = rank < 0
        index = order.gather(1, rank.clamp(min=0))[:, None, :, None]
        index = index.expand(-1, k.size(1), -1, k.size(3))
        state["prev_key"] = k.gather(2, index)
        state["prev_value"] = v.gather(2, index)
        return output, weights

    def _window(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        queries: Rows,
        keys: Rows,
        offset: int,
        position: Tensor | None,
        need_weights: bool,
    ) -> tuple[Tensor, Tensor | None]:
        dropout, dropout_state = self._draw_dropout(q)
        if not need_weights:
            output = functional.window_attention(
                q,
                k,
                v,
                block=1,
                left=self.left,
                right=self.right,
                query_offset=offset,
                query_position=position,
                lengths=keys.lengths,
                query_lengths=queries.lengths,
                order=keys.order,
                query_order=queries.order,
                dropout=dropout,
                dropout_state=dropout_state,
            )
            return output, None
        output, lse = functional.window_attention_with_lse(
            q,
            k,
            v,
            block=1,
            left=self.left,
            right=self.right,
            query_offset=offset,
            query_position=position,
            lengths=keys.lengths,
            query_lengths=queries.lengths,
            order=keys.order,
            query_order=queries.order,
            dropout=dropout,
            dropout_state=dropout_state,
        )
        weights = functional.window_attention_weights(
            q,
            k,
            lse,
            block=1,
            left=self.left,
            right=self.right,
            query_offset=offset,
            query_position=position,
            lengths=keys.lengths,
            query_lengths=queries.lengths,
            order=keys.order,
            query_order=queries.order,
        )
        return output, weights


def _last(tokens: Tensor, count: int) -> Tensor:
    # A copy where the rest is longer than what is kept: the state stays bounded.
    length = tokens.size(2)
    last = tokens.narrow(2, max(length - count, 0), min(length, count))
    return last.clone() if length > 2 * count else last
