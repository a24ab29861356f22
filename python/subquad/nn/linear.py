"""Linear attention by separate softmaxes of queries and keys."""

from argparse import ArgumentParser
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import Unpack

from subquad import functional
from subquad.errors import UnsupportedPattern
from subquad.nn.arguments import add_nested_argument
from subquad.nn.base import lookup
from subquad.nn.options import AttentionOptions
from subquad.nn.registry import register_cls
from subquad.nn.rows import Rows, join_padding
from subquad.nn.summed import SummedAttention


@register_cls
class LinearAttention(SummedAttention):
    r"""Attention with a softmax over the features of a query and the tokens of keys.

    .. math::
        \mathrm{out}_i = \frac{1}{\sqrt{D}} \sum_d \mathrm{softmax}_d(q_i)_d
        \sum_j \mathrm{softmax}_j(k_{\cdot d})_j\, v_j

    (Shen et al. 2021, arXiv 1812.01243, eq. 4). Causal, the keys' softmax is an
    exponential and the sum over what is seen is divided by:

    .. math::
        \mathrm{out}_i = \frac{\hat q_i \sum_{j} e^{k_j} v_j^\top}
        {\max(\hat q_i \cdot \sum_{j} e^{k_j}, \mathtt{eps})}, \qquad
        \hat q_i = \mathrm{softmax}(q_i) / \sqrt{D}

    with j up to i or, with b = ``blindspot_size`` > 1, in the complete buckets of b
    tokens before that of i. In cross-attention every query sees the whole memory.
    Time and memory are linear in the length; decoding keeps one sum and, with
    b > 1, the tokens of the bucket that is not complete.

    There are no attention weights to return. In the causal form features of keys
    above 88 overflow.

    Args:
        embed_dim: Features of query and output.
        num_heads: Query heads H, a divisor of ``embed_dim``.
        blindspot_size: b, of causal self-attention.
        eps: The least denominator of causal self-attention.
        **options: Those of :class:`ProjectedAttention`.

    Raises:
        ValueError: A blindspot below 1, or without causal self-attention; a negative
            ``eps``.

    Example:
        >>> attention = LinearAttention(64, 4, causal=True)
        >>> attention(torch.randn(100, 2, 64))[0].shape
        torch.Size([100, 2, 64])
    """

    names: ClassVar[tuple[str, ...]] = ("linear",)

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        blindspot_size: int = 1,
        eps: float = 1e-3,
        **options: Unpack[AttentionOptions],
    ) -> None:
        """Keep the bucket and the floor."""
        super().__init__(embed_dim, num_heads, **options)
        if blindspot_size < 1:
            raise ValueError(
                f"LinearAttention: blindspot_size must be at least 1, "
                f"got {blindspot_size}"
            )
        if blindspot_size > 1 and not self.hides_future:
            raise ValueError(
                "LinearAttention: blindspot_size needs causal self-attention, "
                f"got {blindspot_size} without"
            )
        if not eps >= 0:
            raise ValueError(f"LinearAttention: eps must not be negative, got {eps}")
        self.blindspot_size = blindspot_size
        self.eps = float(eps)

    def extra_repr(self) -> str:
        """The bucket and the floor before the common options."""
        parts = []
        if self.blindspot_size > 1:
            parts.append(f"blindspot_size={self.blindspot_size}")
        if self.hides_future:
            parts.append(f"eps={self.eps}")
        return ", ".join([*parts, super().extra_repr()])

    @staticmethod
    def add_attn_specific_args(parent_parser: ArgumentParser) -> ArgumentParser:
        """Add ``--blindspot-size`` and ``--eps``."""
        group = parent_parser.add_argument_group("Attention")
        add_nested_argument(
            group,
            "--blindspot-size",
            type=int,
            default=1,
            help="tokens of the buckets that causal queries see from outside "
            "(default: %(default)s)",
        )
        add_nested_argument(
            group,
            "--eps",
            type=float,
            default=1e-3,
            help="least denominator when causal (default: %(default)s)",
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
        if self.hides_future:
            empty: dict[str, Tensor | None] = {}
            sums = self._sum(q, k, v, queries, keys, offset, False, empty)
            return sums[0], None
        output = functional.efficient_attention(
            q,
            k,
            v,
            lengths=keys.lengths,
            order=keys.order,
            query_lengths=queries.lengths,
            query_order=queries.order,
        )
        return output, None

    def _sum(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        queries: Rows,
        keys: Rows,
        offset: Tensor | None,
        decoding: bool,
        state: dict[str, Tensor | None],
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        state_kv = lookup(state, "prev_sum_kv")
        state_k = lookup(state, "prev_sum_k")
        if self.hides_future:
            return functional.linear_attention_with_state(
                q,
                k,
                v,
                causal=True,
                blindspot=self.blindspot_size,
                floor=self.eps,
                scale=self.head_dim**-0.5,
                query_map="softmax",
                key_map="exp",
                state_kv=state_kv,
                state_k=state_k,
                lengths=keys.lengths,
                order=keys.order,
            )
        if state_kv is None or state_k is None:
            context = functional.sequence_pool(
                k, v, lengths=keys.lengths, order=keys.order
            )
            wide = torch.float64 if context.dtype == torch.float64 else torch.float32
            state_kv = context.to(wide)  # [B, Hkv, D, D]
            state_k = state_kv.new_zeros(context.shape[:3])  # not used
        none = q[:, : self.num_kv_heads, :0]
        return functional.linear_attention_with_state(
            q,
            none,
            none,
            normalize=False,
            scale=self.head_dim**-0.5,
            query_map="softmax",
            state_kv=state_kv,
            state_k=state_k,
            query_lengths=queries.lengths,
            query_order=queries.order,
        )

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
                "LinearAttention: decoding needs causal=True, for queries of "
                "causal=False see tokens to come"
            )
        # Tokens of the open bucket come again, now as part of what may be complete;
        # their own results were given already.
        past = 0
        prev_key, prev_value = lookup(state, "prev_key"), lookup(state, "prev_value")
        if prev_key is not None and prev_value is not None:
            past = prev_key.size(2)
            shape = [q.size(0), q.size(1), past, q.size(3)]
            q = torch.cat((q.new_zeros(shape), q), 2)
            k = torch.cat((prev_key, k), 2)
            v = torch.cat((prev_value, v), 2)
        before = lookup(state, "prev_key_padding_mask")
        padding = join_padding(before, keys.padding, past, k)
        if padding is not None and past > 0:
            lengths, order = functional.mask_to_spans(padding)
            keys = Rows(padding, lengths, order)
        sums = self._sum(q, k, v, keys, keys, None, True, state)
        self._keep(state, sums)
        if self.blindspot_size > 1:
            self._keep_open_bucket(state, k, v, keys)
        return sums[0].narrow(2, past, q.size(2) - past), None

    def _keep_open_bucket(
        self, state: dict[str, Tensor | None], k: Tensor, v: Tensor, rows: Rows
    ) -> None:
        lengths, order = rows.lengths, rows.order
        if lengths is None or order is None:
            count = k.size(2) % self.blindspot_size
            first = k.size(2) - count
            # Copies: a view would keep all tokens of the call.
            state["prev_key"] = k.narrow(2, first, count).clone()
            state["prev_value"] = v.narrow(2, first, count).clone()
            return
        # Rows have open buckets of different lengths: they end together.
        size = min(self.blindspot_size - 1, k.size(2))
        slot = torch.arange(-size, 0, device=k.device)
        kept = lengths.remainder(self.blindspot_size).unsqueeze(1)  # [B, 1]
        state["prev_key_padding_mask"] = slot < -kept
        rank = (lengths.unsqueeze(1) + slot).clamp(min=0)  # [B, size]
        index = order.gather(1, rank)[:, None, :, None]
        index = index.expand(-1, k.size(1), -1, k.size(3))
        state["prev_key"] = k.gather(2, index)
        state["prev_value"] = v.gather(2, index)
