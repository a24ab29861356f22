"""Softmax attention to all keys."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Unpack

from subquad.nn.base import ProjectedAttention, lookup
from subquad.nn.options import AttentionOptions
from subquad.nn.registry import register_cls
from subquad.nn.rows import Rows, join_padding
from subquad.reference.softmax_weights import softmax_weights


@register_cls
class MultiheadAttention(ProjectedAttention):
    r"""Softmax attention of each query to all keys, by PyTorch's own kernels.

    .. math::
        \mathrm{out}_i = \sum_j
        \mathrm{softmax}_j\!\left(q_i \cdot k_j / \sqrt{D} + m_{ij}\right) v_j

    (Vaswani et al. 2017, arXiv 1706.03762, equation 1). Time is quadratic in the
    length; decoding keeps all keys and values. The baseline of the other mechanisms.

    ``attn_mask`` may be given unless ``causal``; a query that sees no key gets zero.
    With ``need_weights`` the weights ``[B, L, S]`` are computed a second time, in
    O(L S) memory.

    Args:
        embed_dim: Features of query and output.
        num_heads: Query heads H, a divisor of ``embed_dim``.
        add_bias_kv: Append a learned key and value that every query sees.
        add_zero_attn: Append a key and value of zeros that every query sees.
        **options: Those of :class:`ProjectedAttention`.

    Example:
        >>> attention = MultiheadAttention(64, 4, cross=True)
        >>> query, memory = torch.randn(7, 2, 64), torch.randn(9, 2, 64)
        >>> attention(query, memory)[0].shape
        torch.Size([7, 2, 64])
    """

    names: ClassVar[tuple[str, ...]] = ("softmax", "multihead", "mha")

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        **options: Unpack[AttentionOptions],
    ) -> None:
        """Add the learned key and value."""
        super().__init__(embed_dim, num_heads, **options)
        self.hides_future = self.causal and not self.cross
        self.add_zero_attn = add_zero_attn
        if add_bias_kv:
            width = self.num_kv_heads * self.head_dim
            self.bias_k = nn.Parameter(torch.empty(1, 1, width))
            self.bias_v = nn.Parameter(torch.empty(1, 1, width))
            nn.init.xavier_normal_(self.bias_k)
            nn.init.xavier_normal_(self.bias_v)
        else:
            self.register_parameter("bias_k", None)
            self.register_parameter("bias_v", None)

    def _check_attn_mask(self) -> None:
        if self.hides_future:
            raise ValueError(
                f"{self.title}: attn_mask and causal=True exclude each other, got both"
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
        output, weights = self._softmax(
            q, k, v, keys.padding, attn_mask, 0, need_weights
        )
        return _blank(output, weights, queries)

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
        past = 0
        prev_key, prev_value = lookup(state, "prev_key"), lookup(state, "prev_value")
        if prev_key is not None and prev_value is not None:
            past = prev_key.size(2)
            k = torch.cat((prev_key, k), 2)
            v = torch.cat((prev_value, v), 2)
        before = lookup(state, "prev_key_padding_mask")
        padding = join_padding(before, keys.padding, past, k)
        state["prev_key"] = k
        state["prev_value"] = v
        state["prev_key_padding_mask"] = padding
        output, weights = self._softmax(q, k, v, padding, attn_mask, past, need_weights)
        return _blank(output, weights, queries)

    def _softmax(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        padding: Tensor | None,
        attn_mask: Tensor | None,
        past: int,
        need_weights: bool,
    ) -> tuple[Tensor, Tensor | None]:
        # Padding [B, S] and attn_mask are those of k [B, Hkv, S, D], which begins
        # with the keys of `past` earlier tokens.
        extra = 0
        if self.bias_k is not None and self.bias_v is not None:
            k = torch.cat((k, self._append(self.bias_k, k)), 2)
            v = torch.cat((v, self._append(self.bias_v, v)), 2)
            extra += 1
        if self.add_zero_attn:
            zero = k.new_zeros([k.size(0), k.size(1), 1, k.size(3)])
            k, v = torch.cat((k, zero), 2), torch.cat((v, zero), 2)
            extra += 1
        # One new token sees all there is; PyTorch has its own causal mask for the
        # plain case.
        causal = self.hides_future and q.size(2) > 1
        plain = causal and past == 0 and extra == 0 and padding is None
        hidden: Tensor | None = None  # bool, broadcasts to [B, H, L, S + extra]
        if causal and not plain:
            hidden = torch.ones(
                [q.size(2), k.size(2) - extra], dtype=torch.bool, device=q.device
            ).triu(past + 1)
        if padding is not None:
            absent = padding[:, None, None, :]
            hidden = absent if hidden is None else hidden | absent
        mask = self._mask(q, k.size(2) - extra, hidden, attn_mask)
        if mask is not None and extra > 0:
            # A visible column: True, or zero to add.
            mask = F.pad(mask, [0, extra], value=float(mask.dtype == torch.bool))
        return self._product(q, k, v, mask, plain, need_weights)

    def _append(self, row: Tensor, tokens: Tensor) -> Tensor:
        # [1, 1, Hkv * D] as one more token of every row.
        row = row.view(1, self.num_kv_heads, 1, self.head_dim).to(tokens.dtype)
        return row.expand(tokens.size(0), -1, -1, -1)

    def _mask(
        self, q: Tensor, length: int, hidden: Tensor | None, attn_mask: Tensor | None
    ) -> Tensor | None:
        # What PyTorch takes: bool, True = visible, or float, added.
        if attn_mask is None:
            return None if hidden is None else ~hidden
        shape = list(attn_mask.shape)
        queries, rows = q.size(2), q.size(0) * self.num_heads
        if shape == [rows, queries, length]:
            attn_mask = attn_mask.view(q.size(0), self.num_heads, queries, length)
        elif (
            shape != [queries, length]
            and shape != [1, queries, length]
            and len(shape) != 4  # of a subclass, ready to be broadcast
        ):
            raise ValueError(
                f"{self.title}: attn_mask must be [L, S] or [B * H, L, S], here "
                f"{[queries, length]} or {[rows, queries, length]}, got {shape}"
            )
        if not attn_mask.is_floating_point():
            masked = attn_mask.to(torch.bool)
            return ~masked if hidden is None else ~(masked | hidden)
        attn_mask = attn_mask.to(q.dtype)
        if hidden is None:
            return attn_mask
        return torch.where(hidden, attn_mask.new_full([], float("-inf")), attn_mask)

    def _product(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
        causal: bool,
        need_weights: bool,
    ) -> tuple[Tensor, Tensor | None]:
        output = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=mask,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=causal,
            enable_gqa=self.num_kv_heads != self.num_heads,
        )
        weights = softmax_weights(q, k, mask, causal) if need_weights else None
        return output, weights


def _blank(
    output: Tensor, weights: Tensor | None, queries: Rows
) -> tuple[Tensor, Tensor | None]:
    # Padded queries: zeros.
    padding = queries.padding
    if padding is not None:
        absent = padding[:, None, :, None]
        output = output.masked_fill(absent, 0.0)
        if weights is not None:
            weights = weights.masked_fill(absent, 0.0)
    return output, weights
