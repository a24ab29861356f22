"""What mechanisms share that know keys and values by their sums alone."""

from typing import Any

import torch
from torch import Tensor

from subquad import functional
from subquad.errors import UnsupportedPattern
from subquad.nn.base import ProjectedAttention, lookup
from subquad.nn.rows import Rows, token_positions


class SummedAttention(ProjectedAttention):
    """Attention whose state is two sums over the tokens seen.

    A mechanism adds :meth:`_sum`. Self-attention decodes with sums in float32
    (float64 for float64); cross-attention with ``static_kv`` keeps the sums of the
    memory instead of its keys and values. There are no weights to return.

    Args:
        embed_dim: Features of query and output.
        num_heads: Query heads H, a divisor of ``embed_dim``.
        **options: Those of :class:`ProjectedAttention`.
    """

    def __init__(self, embed_dim: int, num_heads: int, **options: Any) -> None:
        """Let dropout act on the result."""
        super().__init__(embed_dim, num_heads, **options)
        self.drops_output = True
        self.hides_future = self.causal and not self.cross

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
        """The mechanism on new tokens after those that ``state`` sums.

        Args:
            q: ``[B, H, L, D]``.
            k: ``[B, Hkv, S, D]``.
            v: ``[B, Hkv, S, D]``.
            queries: Valid tokens of ``q``.
            keys: Valid tokens of ``k`` and ``v``.
            offset: ``[B]`` int64, queries of earlier calls; None: 0.
            decoding: There are other calls for the same sequence.
            state: Sums so far, under ``prev_sum_kv``, ``prev_sum_k`` and
                ``prev_log_scale``. Not changed.

        Returns:
            ``[B, H, L, D]`` and the new sums; the last is ``[B, Hkv]`` or, if there
            is no log scale, empty with one axis.
        """
        raise UnsupportedPattern(f"{self.title}: no sums")

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
        empty: dict[str, Tensor | None] = {}
        decoding = offset is not None
        sums = self._sum(q, k, v, queries, keys, offset, decoding, empty)
        return sums[0], None

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
                f"{self.title}: decoding needs causal=True, for queries of "
                "causal=False see tokens to come"
            )
        offset = lookup(state, "prev_position")
        sums = self._sum(q, k, v, queries, keys, offset, True, state)
        self._keep(state, sums)
        return sums[0], None

    def _knows_memory(self, state: dict[str, Tensor | None]) -> bool:
        return lookup(state, "prev_sum_kv") is not None

    def _remember(
        self, state: dict[str, Tensor | None], k: Tensor, v: Tensor, keys: Rows
    ) -> None:
        none = k.new_empty([k.size(0), self.num_heads, 0, k.size(3)])
        empty: dict[str, Tensor | None] = {}
        sums = self._sum(none, k, v, Rows(), keys, None, True, empty)
        self._keep(state, sums)

    def _attend_memory(
        self,
        q: Tensor,
        queries: Rows,
        offset: Tensor | None,
        state: dict[str, Tensor | None],
        attn_mask: Tensor | None,
        need_weights: bool,
    ) -> tuple[Tensor, Tensor | None]:
        none = q.new_empty([q.size(0), self.num_kv_heads, 0, q.size(3)])
        sums = self._sum(q, none, none, queries, Rows(), offset, True, state)
        return sums[0], None

    def _keep(
        self,
        state: dict[str, Tensor | None],
        sums: tuple[Tensor, Tensor, Tensor, Tensor],
    ) -> None:
        state["prev_sum_kv"] = sums[1]
        state["prev_sum_k"] = sums[2]
        state["prev_log_scale"] = sums[3] if sums[3].dim() == 2 else None

    def _check_weights(self) -> None:
        raise UnsupportedPattern(
            f"{self.title}: need_weights is not supported, for the weights of single "
            "keys are never computed"
        )


def position_weights(
    rows: Rows,
    tokens: Tensor,
    other_rows: Rows,
    other: Tensor,
    offset: Tensor | None,
    max_length: int | None,
) -> Tensor:
    """CosFormer's weights of ``tokens [B, H, L, D]``.

    Args:
        rows: Which of them are valid.
        tokens: The tokens.
        other_rows: Valid tokens of the other side, queries or keys.
        other: Its tokens.
        offset: ``[B]`` int64, valid tokens that came before; None: 0.
        max_length: m; None: the larger of the numbers of valid tokens of both sides.

    Returns:
        ``[1 or B, L, 2]``.
    """
    lengths: Tensor | None = None
    if max_length is None:
        one, two = rows.lengths, other_rows.lengths
        if one is not None and two is not None:
            lengths = torch.maximum(one, two)
        elif one is not None:
            lengths = one.clamp(min=other.size(2))
        elif two is not None:
            lengths = two.clamp(min=tokens.size(2))
        else:
            max_length = max(tokens.size(2), other.size(2), 1)
    return functional.cosine_weights(
        token_positions(rows, tokens, offset),
        max_length=max_length,
        lengths=lengths,
        dtype=torch.float64 if tokens.dtype == torch.float64 else torch.float32,
    )


def check_max_length(title: str, max_length: int | None) -> None:
    """Refuse a ``max_length`` below 1."""
    if max_length is not None and max_length < 1:
        raise ValueError(f"{title}: max_length must be at least 1, got {max_length}")


def check_decoding(title: str, decoding: bool, max_length: int | None) -> None:
    """Refuse to decode without ``max_length``."""
    if decoding and max_length is None:
        raise UnsupportedPattern(
            f"{title}: decoding needs max_length, for the weights depend on the "
            "length of the whole sequence"
        )
