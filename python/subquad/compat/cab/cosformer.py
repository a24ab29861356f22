"""cosFormer with the project's treatment of masks, values and decoding."""

import math
import warnings
from argparse import ArgumentParser
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils import skip_init

from subquad import functional, nn
from subquad.compat.cab.base import AbstractAttention, warn_unknown
from subquad.errors import UnsupportedPattern
from subquad.nn.projection import Projection


class CosformerAttention(AbstractAttention, nn.CosformerAttention):
    """:class:`subquad.nn.CosformerAttention` as the project has it.

    Masks have no effect, a missing value is the query, and every call is a whole
    sequence: what ``incremental_state`` brings is not used. With ``causal`` set after
    construction a query sees the keys up to itself, but all of them while decoding.

    Args:
        embed_dim: Features of query and output.
        num_heads: Heads, a divisor of ``embed_dim``.
        kdim: Features of the key input.
        vdim: Features of the value input.
        dropout: Probability of dropping a feature of the result in training.
        has_outproj: Whether ``out_proj`` is applied; its parameters are there anyway.
        act_fun: ``"relu"`` or ``"elu"``, which is 1 + elu(x).
        cross: Kept as an attribute.
        causal: Refused.
        **unknown: Accepted with a warning.

    Raises:
        UnsupportedPattern: ``causal=True``, or ``num_heads`` does not divide
            ``embed_dim``.
        ValueError: Another ``act_fun``.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        kdim: int | None = None,
        vdim: int | None = None,
        dropout: float = 0.0,
        has_outproj: bool = True,
        act_fun: str = "relu",
        cross: bool = False,
        causal: bool = False,
        **unknown: Any,
    ) -> None:
        """Build the module."""
        if causal:
            raise UnsupportedPattern(
                "CosformerAttention cannot do causal attention now; "
                "subquad.nn.CosformerAttention can"
            )
        nn.CosformerAttention.__init__(
            self,
            embed_dim,
            num_heads,
            kdim=kdim,
            vdim=vdim,
            dropout=dropout,
            cross=cross,
            act_fun=act_fun,
        )
        warn_unknown(self.title, unknown)
        self.has_outproj = has_outproj

    @staticmethod
    def add_attn_specific_args(parent_parser: ArgumentParser) -> ArgumentParser:
        """Add ``--act-fun``, which the project calls ``--act-fn``."""
        group = parent_parser.add_argument_group("Attention")
        group.add_argument(
            "--act-fun", "--act-fn", dest="attn_args.act_fun", default="relu"
        )
        return parent_parser

    def _add_projections(self, bias: bool) -> None:
        # Without draws: those of reset_parameters are in the project's order.
        empty: Any = skip_init
        self.k_proj = empty(Projection, self.kdim, self.embed_dim)
        self.v_proj = empty(Projection, self.vdim, self.embed_dim)
        self.q_proj = empty(Projection, self.embed_dim, self.embed_dim)
        self.out_proj = empty(Projection, self.embed_dim, self.embed_dim)

    def reset_parameters(self) -> None:
        """Draw the parameters anew, as ``torch.nn.Linear`` does."""
        projections: Any = (self.k_proj, self.v_proj, self.q_proj, self.out_proj)
        for projection in projections:
            projection.reset_parameters()

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
        eps: float = 1e-6,
        **unknown: Any,
    ) -> tuple[Tensor, None]:
        """Attend; without effect are masks, weights and the state.

        Args:
            query: ``[L, B, embed_dim]``; here and below ``[B, L, ...]`` when
                ``batch_first``.
            key: ``[S, B, kdim]``, default ``query``.
            value: ``[S, B, vdim]``, default ``query``.
            query_padding_mask: Without effect.
            key_padding_mask: Without effect.
            need_weights: Without effect, there are none.
            need_head_weights: Without effect.
            attn_mask: Without effect, but for a warning.
            static_kv: Without effect.
            incremental_state: Without effect where ``causal`` is not set.
            batch_first: Batch before length.
            eps: The least denominator.
            **unknown: Accepted with a warning.

        Returns:
            Output ``[L, B, embed_dim]``, and None.
        """
        warn_unknown(self.title, unknown)
        if attn_mask is not None:
            warnings.warn(f"{self.title}: attn_mask has no effect", stacklevel=2)
        q, k, v = self._inputs(query, key, value, batch_first)
        output = functional.cosformer_attention(
            q,
            k,
            v,
            causal=self.causal and incremental_state is None,
            activation=self.act_fun,
            floor=eps,
        )
        return self._finish(output, batch_first), None

    def left_product(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        attn_mask: Tensor | None = None,
        eps: float = 1e-6,
    ) -> Tensor:
        """The same by the ``[L, S]`` products of queries and keys.

        Args:
            query: ``[L, B, embed_dim]``.
            key: ``[S, B, kdim]``, default ``query``.
            value: ``[S, B, vdim]``, default ``query``.
            attn_mask: ``[L, S]``; where ``causal`` is set, -inf hides a key.
            eps: The least denominator.

        Returns:
            ``[L, B, embed_dim]``.
        """
        q, k, v = self._inputs(query, key, value, False)
        L, S = q.size(2), k.size(2)
        position = torch.arange(max(L, S), device=q.device, dtype=q.dtype)
        position = position * (math.pi / 2 / max(L, S, 1))
        cosine = (position[:L, None] - position[:S]).cos()  # [L, S]
        weights = self._activate(q) @ self._activate(k).mT * cosine
        if self.causal and attn_mask is not None:
            weights = weights.masked_fill(attn_mask == float("-inf"), 0.0)
        weights = weights / weights.sum(-1, keepdim=True).clamp(min=eps)
        return self._finish(weights @ v, False)

    def _inputs(
        self, query: Tensor, key: Tensor | None, value: Tensor | None, batch_first: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        # [B, H, L, D] and [B, H, S, D]
        key = query if key is None else key
        value = query if value is None else value
        return (
            self._split(self.q_proj(query), self.num_heads, batch_first),
            self._split(self.k_proj(key), self.num_heads, batch_first),
            self._split(self.v_proj(value), self.num_heads, batch_first),
        )

    def _activate(self, tokens: Tensor) -> Tensor:
        return tokens.relu() if self.act_fun == "relu" else 1 + F.elu(tokens)

    def _finish(self, output: Tensor, batch_first: bool) -> Tensor:
        output = F.dropout(output, self.dropout, self.training)
        output = self._merge(output, batch_first)
        return self.out_proj(output) if self.has_outproj else output
