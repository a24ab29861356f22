"""Softmax attention behind the interface of ``torch.nn.MultiheadAttention``."""

import torch
from torch import Tensor, nn

from subquad import functional
from subquad.nn.multihead import MultiheadAttention
from subquad.nn.projection import Projection


class TorchMultiheadAttention(MultiheadAttention):
    """Drop-in for ``torch.nn.MultiheadAttention``.

    Constructor, ``forward``, parameters (``in_proj_weight``, ``in_proj_bias``,
    ``out_proj``, ...) and the draws that initialise them are those of PyTorch, so
    state dicts and optimizer states go both ways. The computation is that of
    :class:`subquad.nn.MultiheadAttention`.

    Two things differ: a query that sees no key gives the bias of ``out_proj``
    instead of NaN, and the weights that are returned are those before dropout.

    Args:
        embed_dim: Features of query and output.
        num_heads: Heads H, a divisor of ``embed_dim``.
        dropout: Probability of dropping an attention weight in training.
        bias: Whether the projections have one.
        add_bias_kv: Append a learned key and value that every query sees.
        add_zero_attn: Append a key and value of zeros that every query sees.
        kdim: Features of the key input, default ``embed_dim``.
        vdim: Features of the value input, default ``embed_dim``.
        batch_first: Tensors are ``[B, L, C]`` instead of ``[L, B, C]``.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        ValueError: ``num_heads`` does not divide ``embed_dim``.

    Example:
        >>> theirs = torch.nn.MultiheadAttention(64, 4)
        >>> ours = TorchMultiheadAttention(64, 4)
        >>> ours.load_state_dict(theirs.state_dict())
        <All keys matched successfully>
    """

    names = ()
    in_proj_weight: Tensor | None
    in_proj_bias: Tensor | None
    q_proj_weight: Tensor | None
    k_proj_weight: Tensor | None
    v_proj_weight: Tensor | None

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
        batch_first: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Build the projections."""
        super().__init__(
            embed_dim,
            num_heads,
            dropout=dropout,
            bias=bias,
            add_bias_kv=add_bias_kv,
            add_zero_attn=add_zero_attn,
            kdim=kdim,
            vdim=vdim,
            batch_first=batch_first,
            cross=True,
        )
        self.to(device=device, dtype=dtype)

    def _add_projections(self, bias: bool) -> None:
        width = self.embed_dim
        # The encoder layer of PyTorch reads this name.
        self._qkv_same_embed_dim = self.kdim == width and self.vdim == width
        widths = {"q": width, "k": self.kdim, "v": self.vdim}
        if self._qkv_same_embed_dim:
            self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        else:
            self.register_parameter("in_proj_weight", None)
        for letter, features in widths.items():
            weight = nn.Parameter(torch.empty(width, features))
            self.register_parameter(
                f"{letter}_proj_weight", None if self._qkv_same_embed_dim else weight
            )
        if bias:
            self.in_proj_bias = nn.Parameter(torch.empty(3 * width))
        else:
            self.register_parameter("in_proj_bias", None)
        self.out_proj = Projection(width, width, bias)

    def reset_parameters(self) -> None:
        """Draw the weights of the inputs anew (Glorot), with zero biases."""
        for name, parameter in self.named_parameters(recurse=False):
            if name.endswith("proj_weight"):
                nn.init.xavier_uniform_(parameter)
        for bias in (self.in_proj_bias, self.out_proj.bias):
            if bias is not None:
                nn.init.zeros_(bias)

    def _project_q(self, input: Tensor) -> Tensor:
        return self._project(input, self.q_proj_weight, 0)

    def _project_k(self, input: Tensor) -> Tensor:
        return self._project(input, self.k_proj_weight, 1)

    def _project_v(self, input: Tensor) -> Tensor:
        return self._project(input, self.v_proj_weight, 2)

    def _project(self, input: Tensor, weight: Tensor | None, part: int) -> Tensor:
        begin, width = part * self.embed_dim, self.embed_dim
        if weight is None:
            packed = self.in_proj_weight
            if packed is None:
                raise ValueError(f"{self.title}: the input projections are missing")
            weight = packed.narrow(0, begin, width)
        bias = self.in_proj_bias
        if bias is not None:
            bias = bias.narrow(0, begin, width)
        return functional.projection(input, weight, bias)

    def forward(  # type: ignore[override]
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend from every query.

        Args:
            query: ``[L, B, embed_dim]``, ``[B, L, embed_dim]`` when ``batch_first``,
                or ``[L, embed_dim]``; key and value likewise.
            key: ``[S, B, kdim]``.
            value: ``[S, B, vdim]``.
            key_padding_mask: ``[B, S]`` or ``[S]``; bool True = padding, float is
                added to the logits.
            need_weights: Return the attention weights.
            attn_mask: ``[L, S]`` or ``[B * H, L, S]``; bool True = masked, float is
                added to the logits.
            average_attn_weights: Average the weights over the heads.
            is_causal: Says that ``attn_mask`` is the causal mask; the mask is used
                all the same.

        Returns:
            Output, shaped like the query, and None or the weights ``[B, L, S]``, or
            ``[B, H, L, S]`` of every head; without B if the query has none.

        Raises:
            ValueError: Shapes that do not fit, or ``is_causal`` without a mask.
        """
        if is_causal and attn_mask is None:
            raise ValueError(
                f"{self.title}: is_causal describes attn_mask, got is_causal=True and "
                "no mask"
            )
        single = query.dim() == 2
        if single:
            batch = 0 if self.batch_first else 1
            query, key = query.unsqueeze(batch), key.unsqueeze(batch)
            value = value.unsqueeze(batch)
            if key_padding_mask is not None:
                key_padding_mask = key_padding_mask.unsqueeze(0)
        if key_padding_mask is not None and key_padding_mask.is_floating_point():
            attn_mask = self._join(key_padding_mask, attn_mask)
            key_padding_mask = None
        output, weights = self._run(
            query,
            key,
            value,
            None,
            key_padding_mask,
            None,
            need_weights,
            need_weights and not average_attn_weights,
            False,
            attn_mask,
            True,
            self.batch_first,
        )
        if weights is not None and not average_attn_weights:
            weights = weights.transpose(0, 1)
        if single:
            output = output.squeeze(0 if self.batch_first else 1)
            weights = None if weights is None else weights.squeeze(0)
        return output, weights

    def merge_masks(
        self, attn_mask: Tensor | None, key_padding_mask: Tensor | None, query: Tensor
    ) -> tuple[Tensor | None, int | None]:
        """Join two masks as PyTorch's encoder layer wants them for its fast path.

        Args:
            attn_mask: ``[L, L]`` or ``[B * H, L, L]``.
            key_padding_mask: ``[B, L]``, of the same dtype.
            query: ``[B, L, embed_dim]``.

        Returns:
            None and None, or ``key_padding_mask`` and 1, or ``[B, H, L, L]`` and 2.
        """
        if attn_mask is None:
            return key_padding_mask, None if key_padding_mask is None else 1
        shape = [query.size(0), self.num_heads, query.size(1), query.size(1)]
        merged = attn_mask.view(shape) if attn_mask.dim() == 3 else attn_mask
        if key_padding_mask is not None:
            merged = merged + key_padding_mask[:, None, None, :]
        return merged.expand(shape), 2

    def _join(self, padding: Tensor, attn_mask: Tensor | None) -> Tensor:
        # Both are added to the logits: padding [B, S] and a mask as forward takes it.
        bias = padding[:, None, None, :]
        if attn_mask is None:
            return bias
        if attn_mask.dim() == 3:
            shape = [-1, self.num_heads, attn_mask.size(1), attn_mask.size(2)]
            attn_mask = attn_mask.reshape(shape)
        if attn_mask.is_floating_point():
            return bias + attn_mask
        return bias.masked_fill(attn_mask.to(torch.bool), float("-inf"))
