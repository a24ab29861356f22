"""Drop-in for ``fairseq.modules.MultiheadAttention``."""

from typing import TYPE_CHECKING, Any

import torch
from fairseq.incremental_decoding_utils import with_incremental_state
from fairseq.modules.quant_noise import quant_noise
from torch import Tensor

from subquad import nn
from subquad.errors import UnsupportedPattern
from subquad.nn.base import lookup
from subquad.nn.in_projection import split_in_projections


@with_incremental_state
class MultiheadAttention(nn.MultiheadAttention):
    """fairseq's softmax attention, computed by :class:`subquad.nn.MultiheadAttention`.

    Constructor, ``forward``, decoding state, beam search and checkpoint keys are
    fairseq's; checkpoints go both ways. Unlike fairseq's, the module can be scripted
    and compiled without graph breaks, weights are per head whenever that is asked
    for, and a query that sees no key gives the bias of ``out_proj`` instead of NaN.

    Args:
        embed_dim: Features of query and output.
        num_heads: Heads H, a divisor of ``embed_dim``.
        kdim: Features of the key input, default ``embed_dim``.
        vdim: Features of the value input, default ``embed_dim``.
        dropout: Probability of dropping an attention weight in training.
        bias: Whether the projections have one.
        add_bias_kv: Append a learned key and value that every query sees.
        add_zero_attn: Append a key and value of zeros that every query sees.
        self_attention: Key and value are the query.
        encoder_decoder_attention: The value is the key, of another sequence.
        dictionary: Kept as an attribute.
        q_noise: Rate of quantisation noise on the projections.
        qn_block_size: Its block size.
        xformers_att_config: Must be None.
        xformers_blocksparse_layout: Must be None.
        xformers_blocksparse_blocksize: Of no effect without the two before.

    Raises:
        ValueError: Sizes that do not divide, self-attention with other key widths.
        NotImplementedError: xFormers is asked for.
    """

    names = ()

    if TYPE_CHECKING:  # of fairseq's decorator

        def get_incremental_state(
            self,
            incremental_state: dict[str, dict[str, Tensor | None]] | None,
            key: str,
        ) -> dict[str, Tensor | None] | None:
            """The module's state under a key."""

        def set_incremental_state(
            self,
            incremental_state: dict[str, dict[str, Tensor | None]] | None,
            key: str,
            value: dict[str, Tensor | None],
        ) -> dict[str, dict[str, Tensor | None]] | None:
            """Store it."""

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        kdim: int | None = None,
        vdim: int | None = None,
        dropout: float = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        self_attention: bool = False,
        encoder_decoder_attention: bool = False,
        dictionary: Any = None,
        q_noise: float = 0.0,
        qn_block_size: int = 8,
        xformers_att_config: str | None = None,
        xformers_blocksparse_layout: Tensor | None = None,
        xformers_blocksparse_blocksize: int | None = 16,
    ) -> None:
        """Build the projections."""
        if xformers_att_config is not None or xformers_blocksparse_layout is not None:
            raise NotImplementedError(
                "MultiheadAttention: xFormers is not supported, got "
                "xformers_att_config or xformers_blocksparse_layout"
            )
        super().__init__(
            embed_dim,
            num_heads,
            kdim=kdim,
            vdim=vdim,
            dropout=dropout,
            bias=bias,
            add_bias_kv=add_bias_kv,
            add_zero_attn=add_zero_attn,
            cross=True,
        )
        self.qkv_same_dim = self.kdim == embed_dim and self.vdim == embed_dim
        if self_attention and not self.qkv_same_dim:
            raise ValueError(
                "MultiheadAttention: self-attention needs kdim and vdim to be "
                f"embed_dim, got {self.kdim}, {self.vdim} and {embed_dim}"
            )
        self.self_attention = self_attention
        self.encoder_decoder_attention = encoder_decoder_attention
        self.dictionary = dictionary
        self.beam_size = 1
        for projection in (self.q_proj, self.k_proj, self.v_proj, self.out_proj):
            quant_noise(projection, q_noise, qn_block_size)

    def _add_projections(self, bias: bool) -> None:
        super()._add_projections(bias)
        # In fairseq's order, by which optimizer states are saved: k, v, q, out.
        for name in ("q_proj", "out_proj"):
            self.add_module(name, self._modules.pop(name))

    def _check_lengths(self, queries: int, keys: int) -> None:
        pass  # decoding may begin with more keys than queries

    def forward(  # type: ignore[override]
        self,
        query: Tensor,
        key: Tensor | None,
        value: Tensor | None,
        key_padding_mask: Tensor | None = None,
        incremental_state: dict[str, dict[str, Tensor | None]] | None = None,
        need_weights: bool = True,
        static_kv: bool = False,
        attn_mask: Tensor | None = None,
        before_softmax: bool = False,
        need_head_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend from every query.

        Args:
            query: ``[L, B, embed_dim]``.
            key: ``[S, B, kdim]``; without effect in self-attention, None where the
                state has it. While beam search decodes it may have one row for all
                beams of a sentence.
            value: ``[S, B, vdim]``; taken only if the module is neither for
                self-attention nor for encoder-decoder attention.
            key_padding_mask: ``[B, S]``, nonzero = padding.
            incremental_state: Of the decoder; keys and values of earlier calls come
                before those of this one.
            need_weights: Return the attention weights, before dropout.
            static_kv: Keys and values are those of the first call.
            attn_mask: ``[L, S]`` or ``[B * H, L, S]``; bool True = masked, float is
                added to the logits.
            before_softmax: Must be False.
            need_head_weights: Return the weights of every head.

        Returns:
            Output ``[L, B, embed_dim]``, and None or the weights: ``[B, L, S]``,
            averaged over heads, or ``[H, B, L, S]`` with ``need_head_weights``.

        Raises:
            ValueError: Shapes or arguments that do not fit together.
            UnsupportedPattern: ``before_softmax``.
        """
        if before_softmax:
            raise UnsupportedPattern(
                "MultiheadAttention: before_softmax is not supported, for the logits "
                "are never stored"
            )
        if static_kv and not self.encoder_decoder_attention:
            raise ValueError(
                "MultiheadAttention: static_kv needs encoder_decoder_attention=True"
            )
        if self.self_attention:
            key, value = query, query
        elif self.encoder_decoder_attention:
            value = key
        if key_padding_mask is not None and key_padding_mask.dim() == 0:
            key_padding_mask = None

        beams = 1
        cached: Tensor | None = None
        if incremental_state is not None and static_kv:
            cached = lookup(self._get_input_buffer(incremental_state), "prev_key")
            if cached is not None:
                key, value = None, None
                beams = query.size(1) // max(cached.size(0), 1)
            elif key is not None:
                if self.beam_size > 1 and key.size(1) == query.size(1):
                    key = key[:, :: self.beam_size]
                    value = key
                    if key_padding_mask is not None:
                        key_padding_mask = key_padding_mask[:: self.beam_size]
                beams = query.size(1) // max(key.size(1), 1)
        if cached is None and (key is None or value is None):
            raise ValueError("MultiheadAttention: key and value are needed, got None")

        # The beams of a sentence are so many more queries to its one memory.
        length, batch = query.size(0), query.size(1)
        if beams > 1:
            query = query.reshape(length, -1, beams, self.embed_dim).transpose(1, 2)
            query = query.reshape(length * beams, -1, self.embed_dim)
        output, weights = self._run(
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
            False,
        )
        if beams > 1:
            output = output.reshape(length, beams, -1, self.embed_dim)
            output = output.transpose(1, 2).reshape(length, batch, self.embed_dim)
            if weights is not None:  # [.., B / beams, L * beams, S]
                weights = torch.unflatten(weights, -2, [length, beams])
                weights = weights.transpose(-2, -3).flatten(-4, -3)
        return output, weights

    @torch.jit.export
    def reorder_incremental_state(  # type: ignore[override]
        self,
        incremental_state: dict[str, dict[str, Tensor | None]] | None,
        new_order: Tensor,
    ) -> dict[str, dict[str, Tensor | None]] | None:
        """Let row b of the state be what row ``new_order[b]`` was.

        Encoder-decoder attention keeps one row for all beams of a sentence, and
        leaves the state alone as long as there are as many sentences.

        Args:
            incremental_state: Changed in place.
            new_order: ``[B']`` int64.

        Returns:
            ``incremental_state``.
        """
        buffer = self._get_input_buffer(incremental_state)
        order = new_order
        if self.encoder_decoder_attention and self.beam_size > 1:
            order = torch.div(
                new_order[:: self.beam_size], self.beam_size, rounding_mode="floor"
            )
        reordered: dict[str, Tensor | None] = {}
        for name, tensor in buffer.items():
            if tensor is not None:
                if self.encoder_decoder_attention and tensor.size(0) == order.size(0):
                    return incremental_state
                tensor = tensor.index_select(0, order)
            reordered[name] = tensor
        if incremental_state is not None and len(buffer) > 0:
            self._set_input_buffer(incremental_state, reordered)
        return incremental_state

    def set_beam_size(self, beam_size: int) -> None:
        """Say how many rows in a row share their memory while decoding."""
        self.beam_size = beam_size

    def _get_input_buffer(
        self, incremental_state: dict[str, dict[str, Tensor | None]] | None
    ) -> dict[str, Tensor | None]:
        buffer = self.get_incremental_state(incremental_state, "attn_state")
        if buffer is not None:
            return buffer
        empty: dict[str, Tensor | None] = {}
        return empty

    def _set_input_buffer(  # type: ignore[override]
        self,
        incremental_state: dict[str, dict[str, Tensor | None]] | None,
        buffer: dict[str, Tensor | None],
    ) -> dict[str, dict[str, Tensor | None]] | None:
        padding = lookup(buffer, "prev_key_padding_mask")
        if padding is not None:  # float in states that fairseq's module made
            buffer["prev_key_padding_mask"] = padding.to(torch.bool)
        return self.set_incremental_state(incremental_state, "attn_state", buffer)

    def make_generation_fast_(
        self,
        name: str = "",
        retain_dropout: bool = False,
        retain_dropout_modules: list[str] | None = None,
        **options: Any,
    ) -> None:
        """Prepare for generation.

        Raises:
            UnsupportedPattern: Dropout is to stay in force.
        """
        chosen = retain_dropout_modules
        here = chosen is None or "MultiheadAttention" in chosen
        if retain_dropout and here and self.dropout > 0:
            raise UnsupportedPattern(
                f"MultiheadAttention: --retain-dropout is not supported, at {name!r}"
            )

    def upgrade_state_dict_named(
        self, state_dict: dict[str, Tensor], name: str
    ) -> None:
        """Split packed ``in_proj`` parameters under ``name``, in place."""
        split_in_projections(state_dict, name)
