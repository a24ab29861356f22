"""Softmax attention, estimated by random features."""

from argparse import ArgumentParser
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import Unpack

from subquad import functional
from subquad.nn.arguments import add_nested_argument
from subquad.nn.base import lookup
from subquad.nn.options import AttentionOptions
from subquad.nn.registry import register_cls
from subquad.nn.rows import Rows
from subquad.nn.summed import (
    SummedAttention,
    check_decoding,
    check_max_length,
    position_weights,
)

# Kinds of subquad.functional.random_features.
_RANDOM = {"favorp": "positive", "relu": "relu", "fourier": "trigonometric"}
# Maps of subquad.functional.linear_attention, and what is added to the features.
_MAPS = {
    "dpfp": ("dpfp", 0.0),
    "relu-only": ("relu", 0.1),
    "sigmoid-only": ("sigmoid", 0.1),
    "mlp-fourier": ("relu", 0.0),
}
_SCHEMES = ("default", "fixed", "learnable")
_DRAWS = ("gaussian", "orthogonal")


@register_cls
class Performer(SummedAttention):
    r"""Linear attention between feature maps of queries and keys.

    .. math::
        \mathrm{out}_i = \frac{\phi(q_i) \sum_j \phi(k_j) v_j^\top}
        {\max(\phi(q_i) \cdot \sum_j \phi(k_j), \mathtt{floor})}

    (Choromanski et al. 2021, arXiv 2009.14794, equation 4), over all j, or the j up
    to i when causal; in cross-attention every query sees the whole memory. Time and
    memory are linear in the length; decoding keeps sums of constant size.

    With R = ``approx_attn_dim``, random directions W (R of each key head),
    :math:`p = D^{-1/4} W x` and :math:`n = D^{-1/2} \lVert x \rVert^2 / 2`, the
    features by ``proj_method`` are:

    - ``"favorp"``: :math:`R^{-1/2} (e^{p - n - m} + 10^{-4})`, which estimates softmax
      attention (FAVOR+, lemma 1 there). m is the largest p of the query; of keys the
      largest of the row, and in causal self-attention the largest so far. Gradients
      flow through it. Floor 0.1,
    - ``"relu"``: :math:`\max(R^{-1/2} p, 0) + 10^{-3}`,
    - ``"fourier"``: :math:`R^{-1/2} e^{n - m} [\sin p, \cos p]` (Peng et al. 2021,
      arXiv 2103.02143), with m the largest n, as above but without its gradient,
    - ``"dpfp"``: products of entries of :math:`[\max(x, 0), \max(-x, 0)]` (Schlag et
      al. 2021, arXiv 2102.11174), as many times 2 D features as fit into R,
    - ``"relu-only"`` and ``"sigmoid-only"``: the function of x, plus 0.1,
    - ``"mlp-fourier"``: a learned linear layer and relu over
      :math:`D^{-1/2} [\cos u, \sin u]`, u = W x with R / 2 learned directions.

    The floor of all but ``"favorp"`` is 0.01. Directions of the first three methods are
    normal random vectors, or such that are orthogonal in blocks of D with independent
    normal lengths. ``sample_scheme`` ``"default"`` keeps some in the buffer
    ``eval_proj`` for evaluation and decoding and draws others for each call in
    training; ``"fixed"`` keeps them in the buffer ``random_proj``; ``"learnable"``
    makes that a parameter. A state dict without the buffer can be loaded.

    There are no attention weights to return.

    Args:
        embed_dim: Features of query and output.
        num_heads: Query heads H, a divisor of ``embed_dim``.
        approx_attn_dim: R.
        proj_method: See above.
        sample_scheme: See above.
        cos_weighting: Multiply the weight of key j at query i by
            :math:`\cos(\tfrac{\pi}{2} \tfrac{i - j}{m})`, as
            :class:`CosformerAttention` does.
        max_length: m of ``cos_weighting``, which decoding needs.
        train_draws: ``"gaussian"`` or ``"orthogonal"``, for the directions of a call
            in training.
        eval_draws: The same for those that are kept.
        **options: Those of :class:`ProjectedAttention`.

    Raises:
        ValueError: An unknown name, a number of features that the method cannot
            have, a ``max_length`` below 1 or without ``cos_weighting``.

    Example:
        >>> attention = Performer(64, 4, approx_attn_dim=32, causal=True)
        >>> attention(torch.randn(100, 2, 64))[0].shape
        torch.Size([100, 2, 64])
    """

    names: ClassVar[tuple[str, ...]] = ("performer",)
    eval_proj: Tensor | None
    random_proj: Tensor | None
    max_length: int | None

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        approx_attn_dim: int = 16,
        proj_method: str = "favorp",
        sample_scheme: str = "default",
        cos_weighting: bool = False,
        max_length: int | None = None,
        train_draws: str = "gaussian",
        eval_draws: str = "orthogonal",
        **options: Unpack[AttentionOptions],
    ) -> None:
        """Keep the feature map and draw its directions."""
        super().__init__(embed_dim, num_heads, **options)
        for name, value, valid in (
            ("proj_method", proj_method, (*_RANDOM, *_MAPS)),
            ("sample_scheme", sample_scheme, _SCHEMES),
            ("train_draws", train_draws, _DRAWS),
            ("eval_draws", eval_draws, _DRAWS),
        ):
            if value not in valid:
                raise ValueError(
                    f"Performer: {name} must be one of {', '.join(valid)}, "
                    f"got {value!r}"
                )
        least = {"dpfp": 2 * self.head_dim, "mlp-fourier": 2}.get(proj_method, 1)
        if approx_attn_dim < least:
            raise ValueError(
                f"Performer: approx_attn_dim of {proj_method} must be at least "
                f"{least}, got {approx_attn_dim}"
            )
        if proj_method == "mlp-fourier" and approx_attn_dim % 2:
            raise ValueError(
                "Performer: approx_attn_dim of mlp-fourier must be even, "
                f"got {approx_attn_dim}"
            )
        check_max_length(self.title, max_length)
        if max_length is not None and not cos_weighting:
            raise ValueError(
                f"Performer: max_length needs cos_weighting=True, got {max_length}"
            )
        self.approx_attn_dim = approx_attn_dim
        self.proj_method = proj_method
        self.sample_scheme = sample_scheme
        self.cos_weighting = cos_weighting
        self.max_length = max_length
        self.train_orthogonal = train_draws == "orthogonal"
        self.eval_orthogonal = eval_draws == "orthogonal"

        self.floor = 0.1 if proj_method == "favorp" else 1e-2
        self.stabilizer_gradient = proj_method == "favorp"
        self.random_kind = _RANDOM.get(proj_method, "")
        self.map, self.feature_offset = _MAPS.get(proj_method, ("", 0.0))
        self.feature_degree = 1
        if proj_method == "dpfp":
            self.feature_degree = approx_attn_dim // self.head_dim // 2
        self._add_directions()

    def _add_directions(self) -> None:
        # Those of a method or scheme that is not chosen are None.
        kept = {"default": "eval_proj", "fixed": "random_proj"}
        for name in ("eval_proj", "random_proj"):
            self.register_buffer(name, None)
        self.feature_proj: nn.Module | None = None
        if self.proj_method == "mlp-fourier":
            self.feature_proj = FourierFeatures(
                self.num_kv_heads, self.approx_attn_dim, self.head_dim
            )
        elif self.random_kind:
            directions = self.draw_directions(self.eval_orthogonal)
            if self.sample_scheme == "learnable":
                self.random_proj = nn.Parameter(directions)
            else:
                self.register_buffer(kept[self.sample_scheme], directions)

    def draw_directions(self, orthogonal: bool) -> Tensor:
        """New directions ``[Hkv, R, D]``.

        Args:
            orthogonal: In blocks of D; else independent.
        """
        weight = self.q_proj.weight
        return draw_directions(
            self.num_kv_heads, self.approx_attn_dim, self.head_dim, orthogonal, weight
        )

    def redraw(self) -> None:
        """Draw the directions that are kept anew, in place.

        Raises:
            ValueError: There are none.
        """
        for directions in (self.eval_proj, self.random_proj):
            if directions is not None:
                with torch.no_grad():
                    directions.copy_(self.draw_directions(self.eval_orthogonal))
                return
        raise ValueError(
            f"Performer: {self.proj_method} has no random directions to redraw"
        )

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        super()._load_from_state_dict(
            state_dict,
            prefix,
            local_metadata,
            strict,
            missing_keys,
            unexpected_keys,
            error_msgs,
        )
        # Checkpoints of others may be without directions: this module's own stay.
        for name in self._buffers:
            if prefix + name in missing_keys:
                missing_keys.remove(prefix + name)

    def extra_repr(self) -> str:
        """The mechanism's options before the common ones."""
        parts = [
            f"approx_attn_dim={self.approx_attn_dim}",
            f"proj_method={self.proj_method!r}",
        ]
        if self.random_kind and self.sample_scheme != "default":
            parts.append(f"sample_scheme={self.sample_scheme!r}")
        if self.cos_weighting:
            parts.append("cos_weighting=True")
        if self.max_length is not None:
            parts.append(f"max_length={self.max_length}")
        return ", ".join([*parts, super().extra_repr()])

    @staticmethod
    def add_attn_specific_args(parent_parser: ArgumentParser) -> ArgumentParser:
        """Add the options of the feature map."""
        group = parent_parser.add_argument_group("Attention")
        add_nested_argument(
            group,
            "--approx-attn-dim",
            type=int,
            default=16,
            help="features of a token (default: %(default)s)",
        )
        add_nested_argument(
            group,
            "--proj-method",
            choices=(*_RANDOM, *_MAPS),
            default="favorp",
            help="feature map (default: %(default)s)",
        )
        add_nested_argument(
            group,
            "--sample-scheme",
            choices=_SCHEMES,
            default="default",
            help="of the random directions (default: %(default)s)",
        )
        add_nested_argument(
            group,
            "--cos-weighting",
            action="store_true",
            help="weigh by the cosine of the distance",
        )
        add_nested_argument(
            group,
            "--max-length",
            type=int,
            default=None,
            help="tokens of the longest sequence, which decoding with "
            "--cos-weighting needs (default: %(default)s)",
        )
        return parent_parser

    def _directions(self, tokens: Tensor, decoding: bool) -> Tensor:
        directions = self.random_proj
        if directions is None:
            directions = self.eval_proj
            # Calls that continue each other need the same ones.
            if directions is None or (self.training and not decoding):
                directions = draw_directions(
                    self.num_kv_heads,
                    self.approx_attn_dim,
                    self.head_dim,
                    self.train_orthogonal,
                    tokens,
                )
        return directions.to(tokens.dtype)

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
        query_weight: Tensor | None = None
        key_weight: Tensor | None = None
        if self.cos_weighting:
            check_decoding(self.title, decoding, self.max_length)
            query_weight = position_weights(
                queries, q, keys, k, offset, self.max_length
            )
            key_weight = query_weight
            if self.cross:
                key_weight = position_weights(
                    keys, k, queries, q, None, self.max_length
                )
        # Rows of queries that are not the keys.
        other = Rows() if self.hides_future else queries
        if len(self.random_kind) > 0:
            return functional.performer_attention_with_state(
                q,
                k,
                v,
                self._directions(q, decoding),
                causal=self.hides_future,
                kind=self.random_kind,
                stabilizer_gradient=self.stabilizer_gradient,
                floor=self.floor,
                query_weight=query_weight,
                key_weight=key_weight,
                state_kv=lookup(state, "prev_sum_kv"),
                state_k=lookup(state, "prev_sum_k"),
                state_log_scale=lookup(state, "prev_log_scale"),
                lengths=keys.lengths,
                order=keys.order,
                query_lengths=other.lengths,
                query_order=other.order,
            )
        if self.feature_proj is not None:
            q = self.feature_proj(q, queries.lengths, queries.order)
            k = self.feature_proj(k, keys.lengths, keys.order)
        return functional.linear_attention_with_state(
            q,
            k,
            v,
            causal=self.hides_future,
            floor=self.floor,
            query_map=self.map,
            key_map=self.map,
            feature_offset=self.feature_offset,
            feature_degree=self.feature_degree,
            query_weight=query_weight,
            key_weight=key_weight,
            state_kv=lookup(state, "prev_sum_kv"),
            state_k=lookup(state, "prev_sum_k"),
            lengths=keys.lengths,
            order=keys.order,
            query_lengths=other.lengths,
            query_order=other.order,
        )


class FourierFeatures(nn.Module):
    """The learned features of ``proj_method="mlp-fourier"``, before their relu.

    Args:
        heads: Key heads Hkv.
        features: Features R of a token, an even number.
        head_dim: D.
    """

    def __init__(self, heads: int, features: int, head_dim: int) -> None:
        """Draw directions and layer."""
        super().__init__()
        directions = 0.02 * torch.randn(heads, features // 2, head_dim)
        self.random_proj = nn.Parameter(directions)
        self.features = features
        self.phi = nn.Sequential(nn.Linear(features, features))
        # Of the layer's inputs, which random_features multiplies by (R / 2) ** -0.5.
        self.scale = (features / 2 / head_dim) ** 0.5

    def forward(
        self, tokens: Tensor, lengths: Tensor | None, order: Tensor | None
    ) -> Tensor:
        """Map ``tokens [B, H, L, D]`` to ``[B, H, L, R]``."""
        waves, _ = functional.random_features(
            tokens,
            self.random_proj.to(tokens.dtype),
            kind="sincos",
            stabilizer="none",
            scale=1.0,
            lengths=lengths,
            order=order,
        )
        weight: Tensor = self.phi[0].weight  # type: ignore[assignment]
        bias: Tensor = self.phi[0].bias  # type: ignore[assignment]
        # The layer's inputs are cosines, then sines.
        weight = weight.roll(self.features // 2, 1) * self.scale
        return F.linear(waves, weight, bias)


def draw_directions(
    heads: int, features: int, width: int, orthogonal: bool, like: Tensor
) -> Tensor:
    """Random directions ``[heads, features, width]``.

    Args:
        heads: Number of heads.
        features: Directions of each.
        width: Of a direction.
        orthogonal: Rows of random orthogonal matrices, as many as it takes, with the
            lengths of independent normal vectors. Else normal vectors.
        like: Gives dtype and device.
    """
    dtype, device = like.dtype, like.device
    if not orthogonal:
        return torch.randn([heads, features, width], dtype=dtype, device=device)
    if dtype == torch.float16 or dtype == torch.bfloat16:  # no QR in these
        dtype = torch.float32
    drawn: list[Tensor] = []
    for _ in range(heads):
        blocks: list[Tensor] = []
        for begin in range(0, features, width):
            square = torch.randn([width, width], dtype=dtype, device=device)
            rows = torch.linalg.qr(square)[0].t()
            blocks.append(rows[: min(width, features - begin)])
        lengths = torch.randn([features, width], dtype=dtype, device=device)
        drawn.append(
            torch.cat(blocks) * torch.linalg.vector_norm(lengths, dim=1, keepdim=True)
        )
    return torch.stack(drawn).to(like.dtype)
