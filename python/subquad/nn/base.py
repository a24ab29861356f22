"""What every attention module has in common."""

import math
import uuid
from argparse import ArgumentParser
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from subquad.errors import UnsupportedPattern
from subquad.nn.options import unknown_option
from subquad.nn.projection import Projection
from subquad.nn.rotary import rotate, rotations
from subquad.nn.rows import (
    Rows,
    advance,
    erase_padding,
    find_rows,
    token_positions,
)


def _fresh_name(cls: type) -> str:
    return f"{cls.__name__}.{uuid.uuid4().hex}"


class AbstractAttention(nn.Module):
    """Pattern, layout and decoding state: what needs no parameters.

    Args:
        cross: Keys and values come from another sequence than the queries.
        causal: A query sees no token that comes after it.
        batch_first: Tensors are ``[B, L, C]`` instead of ``[L, B, C]``.
        **unknown: Refused.

    Raises:
        TypeError: An option no constructor knows; names the nearest that exists.

    Attributes:
        names: What the command line calls the mechanism, the usual name first.
        name: The module's key in ``incremental_state``. A copy of the module and an
            unpickled one have a key of their own.
        shares_memory: False. Set it where beam search decodes with cross-attention:
            the rows of a sentence share its memory and stay together, so there is
            nothing to reorder as long as their number stays the same.
    """

    names: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        *,
        cross: bool = False,
        causal: bool = False,
        batch_first: bool = False,
        **unknown: Any,
    ) -> None:
        """Keep the pattern."""
        super().__init__()
        if unknown:
            self._refuse_options(unknown)
        self.cross = cross
        self.causal = causal
        self.batch_first = batch_first
        self.title = type(self).__name__
        self.name = _fresh_name(type(self))
        self.shares_memory = False

    def _refuse_options(self, unknown: dict[str, Any]) -> None:
        raise unknown_option(type(self), unknown)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a copied or unpickled module under a key of its own."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.name = _fresh_name(type(self))

    @staticmethod
    def add_attn_specific_args(parent_parser: ArgumentParser) -> ArgumentParser:
        """Add the mechanism's own options to a command line."""
        return parent_parser

    def _get_input_buffer(
        self, incremental_state: dict[str, dict[str, Tensor | None]] | None
    ) -> dict[str, Tensor | None]:
        """This module's decoding state, empty before the first step."""
        if incremental_state is not None and self.name in incremental_state:
            return incremental_state[self.name]
        empty: dict[str, Tensor | None] = {}
        return empty

    def _set_input_buffer(
        self,
        incremental_state: dict[str, dict[str, Tensor | None]],
        buffer: dict[str, Tensor | None],
    ) -> dict[str, dict[str, Tensor | None]]:
        """Store this module's decoding state."""
        incremental_state[self.name] = buffer
        return incremental_state

    @torch.jit.export
    def reorder_incremental_state(
        self,
        incremental_state: dict[str, dict[str, Tensor | None]],
        new_order: Tensor,
    ) -> dict[str, dict[str, Tensor | None]]:
        """Let row b of the state be what row ``new_order[b]`` was.

        Args:
            incremental_state: Changed in place.
            new_order: ``[B']`` int64; may repeat, drop and add rows, as beam search
                does.

        Returns:
            ``incremental_state``.
        """
        buffer = self._get_input_buffer(incremental_state)
        reordered: dict[str, Tensor | None] = {}
        for key, tensor in buffer.items():
            if tensor is not None:
                if self.shares_memory and tensor.size(0) == new_order.size(0):
                    return incremental_state
                tensor = tensor.index_select(0, new_order)
            reordered[key] = tensor
        if len(buffer) > 0:
            self._set_input_buffer(incremental_state, reordered)
        return incremental_state


class ProjectedAttention(AbstractAttention):
    r"""Attention between projections of the inputs, split into heads.

    .. math::
        \mathrm{out} = W_o\,\mathrm{concat}_h\,
        \mathrm{attend}(W_q\,x_q, W_k\,x_k, W_v\,x_v)_h

    A mechanism adds :meth:`_attend`, and :meth:`_step` if it decodes with a state of
    its own; projections, heads, padding, positions and memory are done here. One
    without weights over keys sets ``drops_output``: dropout is then that of its
    result.

    Padding is absence: the result at valid positions is that of the sequence of
    valid tokens alone. At padded queries the attention result is zero, so the output
    is the bias of ``out_proj``.

    Args:
        embed_dim: Features of query and output.
        num_heads: Query heads H, a divisor of ``embed_dim``.
        kdim: Features of the key input, default ``embed_dim``.
        vdim: Features of the value input, default ``embed_dim``.
        num_kv_heads: Key and value heads, a divisor of H, default H.
        bias: Whether the four projections have one.
        dropout: Probability of dropping, in training, an attention weight, or where a
            mechanism has none, an element of its result before ``out_proj``.
        rotary_base: Turn queries and keys by rotary positions with this base
            (10000 is customary), counted per valid token and continued while
            decoding. None: no positions.
        cross: Keys and values come from another sequence than the queries.
        causal: A query sees no token that comes after it.
        batch_first: Tensors are ``[B, L, C]`` instead of ``[L, B, C]``.
        **unknown: Refused.

    Raises:
        ValueError: Sizes that do not divide, a dropout outside ``[0, 1)``.
        TypeError: An option no constructor knows.
    """

    rotary_base: float | None

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        kdim: int | None = None,
        vdim: int | None = None,
        num_kv_heads: int | None = None,
        bias: bool = True,
        dropout: float = 0.0,
        rotary_base: float | None = None,
        cross: bool = False,
        causal: bool = False,
        batch_first: bool = False,
        **unknown: Any,
    ) -> None:
        """Build the projections."""
        super().__init__(cross=cross, causal=causal, batch_first=batch_first, **unknown)
        kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        self._check_sizes(embed_dim, num_heads, kv_heads)
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"{self.title}: dropout must lie in [0, 1), got {dropout}")
        self.embed_dim = embed_dim
        self.kdim = embed_dim if kdim is None else kdim
        self.vdim = embed_dim if vdim is None else vdim
        self.num_heads = num_heads
        self.num_kv_heads = kv_heads
        self.head_dim = embed_dim // num_heads
        self.dropout = float(dropout)
        self.drops_output = False
        if rotary_base is not None and (self.head_dim % 2 or rotary_base <= 0):
            raise ValueError(
                f"{self.title}: rotary positions need an even head width and a "
                f"positive base, got {self.head_dim} and {rotary_base}"
            )
        self.rotary_base = None if rotary_base is None else float(rotary_base)
        self._add_projections(bias)
        self.reset_parameters()

    def _add_projections(self, bias: bool) -> None:
        width = self.num_kv_heads * self.head_dim
        self.q_proj = Projection(self.embed_dim, self.embed_dim, bias)
        self.k_proj = Projection(self.kdim, width, bias)
        self.v_proj = Projection(self.vdim, width, bias)
        self.out_proj = Projection(self.embed_dim, self.embed_dim, bias)

    def _check_sizes(self, embed_dim: int, num_heads: int, kv_heads: int) -> None:
        if num_heads < 1 or embed_dim < 1 or embed_dim % num_heads:
            raise ValueError(
                f"{self.title}: num_heads must be positive and divide embed_dim, "
                f"got {num_heads} and {embed_dim}"
            )
        if kv_heads < 1 or num_heads % kv_heads:
            raise ValueError(
                f"{self.title}: num_kv_heads must be positive and divide num_heads, "
                f"got {kv_heads} and {num_heads}"
            )

    def reset_parameters(self) -> None:
        """Draw the weights anew (Glorot), with zero biases."""
        # Where the three inputs are as wide as the output, q, k and v are treated
        # as one matrix of three times the height.
        same = self.kdim == self.embed_dim and self.vdim == self.embed_dim
        gain = 1 / math.sqrt(2) if same else 1.0
        for projection in (self.q_proj, self.k_proj, self.v_proj):
            nn.init.xavier_uniform_(projection.weight, gain=gain)
            if projection.bias is not None:
                nn.init.zeros_(projection.bias)
        if isinstance(self.out_proj, Projection):  # else the mechanism has none
            nn.init.xavier_uniform_(self.out_proj.weight)
            if self.out_proj.bias is not None:
                nn.init.zeros_(self.out_proj.bias)

    def extra_repr(self) -> str:
        """The pattern and the options that are not visible in the projections."""
        parts = [f"num_heads={self.num_heads}"]
        if self.num_kv_heads != self.num_heads:
            parts.append(f"num_kv_heads={self.num_kv_heads}")
        if self.dropout:
            parts.append(f"dropout={self.dropout}")
        if self.rotary_base is not None:
            parts.append(f"rotary_base={self.rotary_base}")
        flags = ("cross", "causal", "batch_first")
        parts += [f"{flag}=True" for flag in flags if getattr(self, flag)]
        return ", ".join(parts)

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        incremental_state: dict[str, dict[str, Tensor | None]] | None = None,
        need_weights: bool = False,
        static_kv: bool = False,
        attn_mask: Tensor | None = None,
        query_padding_mask: Tensor | None = None,
        need_head_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend from every query.

        Args:
            query: ``[L, B, embed_dim]``; here and below ``[B, L, ...]`` when
                ``batch_first``.
            key: ``[S, B, kdim]``, default ``query``.
            value: ``[S, B, vdim]``, default ``key``.
            key_padding_mask: ``[B, S]`` of any dtype, nonzero = padding.
            incremental_state: One dict for all modules of a model and all calls of a
                sequence. Self-attention continues the sequence of the earlier calls
                with one or more tokens.
            need_weights: Return the attention weights, before dropout.
            static_kv: Cross-attention that decodes: project key and value in the
                first call only; later ones may pass None.
            attn_mask: ``[L, S]`` or ``[B * H, L, S]``; bool True = masked, float is
                added to the logits. Softmax attention only.
            query_padding_mask: ``[B, L]``, nonzero = padding. In self-attention a
                token is padding if either mask says so.
            need_head_weights: Return the weights of every head.

        Returns:
            Output ``[L, B, embed_dim]``, and None or the weights: ``[B, L, W]``,
            averaged over heads, or ``[H, B, L, W]`` with ``need_head_weights``. W
            counts what a query can see: keys, or the slots of a window.

        Raises:
            ValueError: Shapes or arguments that do not fit together.
            UnsupportedPattern: An argument that the mechanism cannot honour.
        """
        if not self.cross:
            if key_padding_mask is None:
                key_padding_mask = query_padding_mask
            elif query_padding_mask is not None:
                key_padding_mask = key_padding_mask.ne(0) | query_padding_mask.ne(0)
            query_padding_mask = key_padding_mask
        return self._run(
            query,
            key,
            value,
            query_padding_mask,
            key_padding_mask,
            incremental_state,
            need_weights,
            need_head_weights,
            static_kv,
            attn_mask,
            self.cross,
            self.batch_first,
        )

    def _run(
        self,
        query: Tensor,
        key: Tensor | None,
        value: Tensor | None,
        query_padding: Tensor | None,
        key_padding: Tensor | None,
        incremental_state: dict[str, dict[str, Tensor | None]] | None,
        need_weights: bool,
        need_head_weights: bool,
        static_kv: bool,
        attn_mask: Tensor | None,
        cross: bool,
        batch_first: bool,
    ) -> tuple[Tensor, Tensor | None]:
        if static_kv and not cross:
            raise ValueError(
                f"{self.title}: static_kv needs cross attention, got self-attention"
            )
        if attn_mask is not None:
            self._check_attn_mask()
        self._check_query(query)
        with_weights = need_weights or need_head_weights
        if with_weights:
            self._check_weights()
        decoding = incremental_state is not None
        state: dict[str, Tensor | None] = {}
        offset: Tensor | None = None  # [B], tokens of the earlier calls
        if decoding:
            state = self._get_input_buffer(incremental_state).copy()
            offset = lookup(state, "prev_position")
            if offset is None:
                rows = query.size(0 if batch_first else 1)
                offset = query.new_zeros([rows], dtype=torch.int64)

        queries = self._rows(query, query_padding, batch_first)
        source = self._erase(query, queries, batch_first)
        q = self._split(self._project_q(source), self.num_heads, batch_first)
        rotation = self._rotation(q, queries, offset)
        q = q if rotation is None else rotate(q, rotation)
        if decoding and static_kv and self._knows_memory(state):
            output, weights = self._attend_memory(
                q, queries, offset, state, attn_mask, with_weights
            )
        else:
            key = query if key is None else key
            value = key if value is None else value
            self._check_memory(query, key, value, cross, batch_first)
            keys = queries
            shared = not cross and key_padding is query_padding
            if not shared:
                keys = self._rows(key, key_padding, batch_first)
                source = self._erase(key, keys, batch_first)
            elif key is not query:
                source = self._erase(key, keys, batch_first)
            k = self._split(self._project_k(source), self.num_kv_heads, batch_first)
            if not shared:
                rotation = self._rotation(k, keys, None if cross else offset)
            k = k if rotation is None else rotate(k, rotation)
            if value is not key:
                source = self._erase(value, keys, batch_first)
            v = self._split(self._project_v(source), self.num_kv_heads, batch_first)
            if decoding and static_kv:
                self._remember(state, k, v, keys)
                output, weights = self._attend_memory(
                    q, queries, offset, state, attn_mask, with_weights
                )
            elif decoding and not cross:
                output, weights = self._step(
                    q, k, v, queries, keys, state, attn_mask, with_weights
                )
            else:
                output, weights = self._attend(
                    q, k, v, queries, keys, offset, attn_mask, with_weights
                )
        if incremental_state is not None and offset is not None:
            state["prev_position"] = advance(offset, queries, q)
            self._set_input_buffer(incremental_state, state)

        output = self._merge(output, batch_first)  # [L, B, C] or [B, L, C]
        if self.drops_output:
            output = F.dropout(output, self.dropout, self.training)
        output = self.out_proj(output)
        if weights is not None:
            weights = weights.transpose(0, 1) if need_head_weights else weights.mean(1)
        return output, weights

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
        """The mechanism on whole sequences.

        Args:
            q: ``[B, H, L, D]``.
            k: ``[B, Hkv, S, D]``.
            v: ``[B, Hkv, S, D]``.
            queries: Valid tokens of ``q``.
            keys: Valid tokens of ``k`` and ``v``.
            offset: ``[B]`` int64, the queries of the earlier calls in
                cross-attention that decodes, else None.
            attn_mask: As passed by the caller.
            need_weights: Whether the second result is wanted.

        Returns:
            ``[B, H, L, D]``, zeros at padded queries, and None or the weights
            ``[B, H, L, W]``.
        """
        raise UnsupportedPattern(f"{self.title}: no parallel form")

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
        """Self-attention of new tokens, which continue the sequence in ``state``.

        Arguments and result as for :meth:`_attend`. Changes ``state``, whose tensors
        have the batch first.
        """
        raise UnsupportedPattern(f"{self.title}: no incremental decoding")

    def _attend_memory(
        self,
        q: Tensor,
        queries: Rows,
        offset: Tensor | None,
        state: dict[str, Tensor | None],
        attn_mask: Tensor | None,
        need_weights: bool,
    ) -> tuple[Tensor, Tensor | None]:
        # Cross-attention to what _remember put into the state.
        k, v, keys = self._recall(state)
        return self._attend(q, k, v, queries, keys, offset, attn_mask, need_weights)

    def _check_weights(self) -> None:
        # Raises where a mechanism has no weights to return.
        pass

    def _check_attn_mask(self) -> None:
        raise UnsupportedPattern(
            f"{self.title}: attn_mask is not supported; set causal=True to hide the "
            "future, pass key_padding_mask to hide padding"
        )

    def _check_query(self, query: Tensor) -> None:
        if query.dim() != 3 or query.size(2) != self.embed_dim:
            raise ValueError(
                f"{self.title}: query must have three axes and {self.embed_dim} "
                f"features, got {query.shape}"
            )

    def _check_memory(
        self, query: Tensor, key: Tensor, value: Tensor, cross: bool, batch_first: bool
    ) -> None:
        if key.dim() != 3 or key.size(2) != self.kdim:
            raise ValueError(
                f"{self.title}: key must have three axes and {self.kdim} features, "
                f"got {key.shape}"
            )
        if value.dim() != 3 or value.size(2) != self.vdim:
            raise ValueError(
                f"{self.title}: value must have three axes and {self.vdim} features, "
                f"got {value.shape}"
            )
        if key.size(0) != value.size(0) or key.size(1) != value.size(1):
            raise ValueError(
                f"{self.title}: key and value must have the same batch and length, "
                f"got {key.shape} and {value.shape}"
            )
        batch, length = (0, 1) if batch_first else (1, 0)
        if query.size(batch) != key.size(batch):
            raise ValueError(
                f"{self.title}: query and key must have the same batch, got "
                f"{query.size(batch)} and {key.size(batch)}"
            )
        if not cross:
            self._check_lengths(query.size(length), key.size(length))

    def _check_lengths(self, queries: int, keys: int) -> None:
        if queries != keys:
            raise ValueError(
                f"{self.title}: self-attention needs as many keys as queries, got "
                f"{keys} and {queries}; cross=True lifts this"
            )

    def _rows(self, input: Tensor, padding: Tensor | None, batch_first: bool) -> Rows:
        if padding is not None:
            batch, length = (0, 1) if batch_first else (1, 0)
            shape = [input.size(batch), input.size(length)]
            if list(padding.shape) != shape:
                raise ValueError(
                    f"{self.title}: a padding mask must have the shape [B, L] of its "
                    f"tokens, {shape}, got {list(padding.shape)}"
                )
        return find_rows(padding)

    def _erase(self, input: Tensor, rows: Rows, batch_first: bool) -> Tensor:
        return erase_padding(input, rows, batch_first)

    def _project_q(self, input: Tensor) -> Tensor:
        output: Tensor = self.q_proj(input)
        return output

    def _project_k(self, input: Tensor) -> Tensor:
        output: Tensor = self.k_proj(input)
        return output

    def _project_v(self, input: Tensor) -> Tensor:
        output: Tensor = self.v_proj(input)
        return output

    def _split(self, input: Tensor, heads: int, batch_first: bool) -> Tensor:
        # A view [B, heads, L, D] of the projection.
        split = input.view(input.size(0), input.size(1), heads, self.head_dim)
        if batch_first:
            return split.permute(0, 2, 1, 3)
        return split.permute(1, 2, 0, 3)

    def _merge(self, output: Tensor, batch_first: bool) -> Tensor:
        # A view again, if the core kept the memory layout of the queries.
        if batch_first:
            return output.permute(0, 2, 1, 3).flatten(2)
        return output.permute(2, 0, 1, 3).flatten(2)

    def _rotation(
        self, tokens: Tensor, rows: Rows, offset: Tensor | None
    ) -> Tensor | None:
        base = self.rotary_base
        if base is None:
            return None
        positions = token_positions(rows, tokens, offset)
        return rotations(positions, self.head_dim, base, tokens.dtype)

    def _draw_dropout(self, tokens: Tensor) -> tuple[float, Tensor | None]:
        # The rate in force, and the seed and offset a fused operator needs for it.
        if not self.training or self.dropout == 0.0:
            return 0.0, None
        state = torch.randint(
            0, 0x7FFFFFFFFFFFFFFF, [2], dtype=torch.int64, device=tokens.device
        )
        return self.dropout, state

    def _knows_memory(self, state: dict[str, Tensor | None]) -> bool:
        return lookup(state, "prev_key") is not None

    def _remember(
        self, state: dict[str, Tensor | None], k: Tensor, v: Tensor, keys: Rows
    ) -> None:
        state["prev_key"] = k
        state["prev_value"] = v
        state["prev_key_padding_mask"] = keys.padding
        state["prev_lengths"] = keys.lengths
        state["prev_order"] = keys.order

    def _recall(self, state: dict[str, Tensor | None]) -> tuple[Tensor, Tensor, Rows]:
        k, v = lookup(state, "prev_key"), lookup(state, "prev_value")
        if k is None or v is None:
            raise ValueError(f"{self.title}: the memory's state is incomplete")
        padding = lookup(state, "prev_key_padding_mask")
        lengths, order = lookup(state, "prev_lengths"), lookup(state, "prev_order")
        return k, v, Rows(padding, lengths, order)


def lookup(state: dict[str, Tensor | None], key: str) -> Tensor | None:
    """The tensor under ``key``, None if there is none."""
    return state[key] if key in state else None
