"""Performer with the project's treatment of masks and of causality."""

import warnings
from argparse import ArgumentParser
from typing import Any

import torch
from torch import Tensor

from subquad import functional
from subquad.compat.cab.multihead_attention import MultiheadAttention
from subquad.nn.arguments import add_nested_argument
from subquad.nn.performer import draw_directions

_FLOOR = 0.1
_EPS = 1e-4


class Performer(MultiheadAttention):
    """:class:`subquad.nn.Performer` as the project has it.

    The mask of row ``(b * H + h) % B`` hides the keys of head h in row b, after the
    features' maximum was taken over all keys, padding included. Queries see all keys,
    ``causal`` or not. A decoding step keeps all keys and values. With ``causal`` set
    after construction a query gets the value of its own position alone, over the sum
    of the weights so far.

    Args:
        approx_attn_dim: Random features.
        embed_dim: Features of query and output.
        num_heads: Heads, a divisor of ``embed_dim``.
        dropout: Probability of dropping a feature of the result in training.
        bias: Whether the projections have one.
        add_bias_kv: Append a learned key and value.
        add_zero_attn: Append a key and value of zeros.
        kdim: Features of the key input.
        vdim: Features of the value input.
        cross: Kept as an attribute.
        causal: Without effect, but for a warning in self-attention.
        **unknown: Accepted with a warning.

    Raises:
        UnsupportedPattern: ``num_heads`` does not divide ``embed_dim``.
    """

    def __init__(
        self,
        approx_attn_dim: int = 16,
        *,
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
        """Build the module and draw the projection of evaluation."""
        super().__init__(
            embed_dim,
            num_heads,
            dropout=dropout,
            bias=bias,
            add_bias_kv=add_bias_kv,
            add_zero_attn=add_zero_attn,
            kdim=kdim,
            vdim=vdim,
            cross=cross,
            **unknown,
        )
        if causal and not cross:
            warnings.warn(
                "Performer: causal has no effect, every query sees all keys; "
                "subquad.nn.Performer has a causal form",
                stacklevel=2,
            )
        self.drops_output = True
        self.approx_attn_dim = approx_attn_dim
        weight = self.q_proj.weight
        directions = draw_directions(
            num_heads, approx_attn_dim, self.head_dim, True, weight
        )
        self.eval_proj: Tensor
        self.register_buffer("eval_proj", directions.detach())

    @staticmethod
    def add_attn_specific_args(parent_parser: ArgumentParser) -> ArgumentParser:
        """Add ``--approx-attn-dim``."""
        group = parent_parser.add_argument_group("Attention")
        add_nested_argument(group, "--approx-attn-dim", type=int, default=16)
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
        """Attend; arguments as :meth:`MultiheadAttention.forward`.

        ``query_padding_mask`` and, but for a warning, ``attn_mask`` have no effect.
        There are no weights: the second result is None.
        """
        if attn_mask is not None:
            warnings.warn(f"{self.title}: attn_mask has no effect", stacklevel=2)
        return super().forward(
            query,
            key,
            value,
            query_padding_mask,
            key_padding_mask,
            False,
            False,
            None,
            static_kv,
            incremental_state,
            batch_first,
            **unknown,
        )

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *arguments: Any
    ) -> None:
        # Checkpoints of the project are without directions: the module's own stay.
        state_dict.setdefault(f"{prefix}eval_proj", self.eval_proj)
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def _product(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
        causal: bool,
        need_weights: bool,
    ) -> tuple[Tensor, Tensor | None]:
        directions = self.eval_proj
        heads, features = self.num_heads, self.approx_attn_dim
        if self.training:
            directions = draw_directions(heads, features, self.head_dim, False, q)
        directions = directions.to(q)
        eps = _EPS * features**-0.5
        q, _ = functional.random_features(q, directions, eps=eps)
        k, _ = functional.random_features(k, directions, eps=eps, stabilizer="row")
        if mask is not None:  # [B, 1, 1, S], True = visible
            batch = k.size(0)
            row = torch.arange(batch * heads, device=k.device) % batch
            hidden = ~mask[:, 0, 0][row.view(batch, heads)]  # [B, H, S]
            k = k.masked_fill(hidden.unsqueeze(-1), 0.0)
        if not self.causal:
            return functional.linear_attention(q, k, v, floor=_FLOOR), None
        weights = (q * k).sum(-1, keepdim=True)
        total = (q * k.cumsum(2)).sum(-1, keepdim=True).clamp(min=_FLOOR)
        return (weights / total * v)[:, :, -q.size(2) :], None
