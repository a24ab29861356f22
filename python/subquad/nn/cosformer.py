"""Linear attention reweighted by a cosine of the distance."""

from argparse import ArgumentParser
from typing import ClassVar

from torch import Tensor, nn
from typing_extensions import Unpack

from subquad import functional
from subquad.nn.arguments import add_nested_argument
from subquad.nn.base import lookup
from subquad.nn.options import AttentionOptions
from subquad.nn.registry import register_cls
from subquad.nn.rows import Rows, token_positions
from subquad.nn.summed import SummedAttention, check_decoding, check_max_length


@register_cls
class CosformerAttention(SummedAttention):
    r"""cosFormer: rectified products, weighted by the cosine of the distance.

    .. math::
        \mathrm{out}_i = \frac{\sum_j s_{ij} v_j}
        {\max\!\left(\sum_j s_{ij}, 10^{-6}\right)}, \qquad
        s_{ij} = f(q_i) \cdot f(k_j)
        \cos\!\left(\frac{\pi}{2} \cdot \frac{i - j}{m}\right)

    (Qin et al. 2022, arXiv 2202.08791, equation 10) with f = relu or 1 + elu, over
    all j, or the j up to i when causal. In cross-attention every query sees the whole
    memory, ``causal`` or not, and i counts the queries, j the keys. Time and memory
    are linear in the length; decoding keeps two sums of constant size.

    m is ``max_length``, or without it the larger of a row's numbers of valid queries
    and keys. Then what a token attends to depends on how long the sequence will be,
    and decoding is refused. With ``max_length`` a longer sequence is refused on the
    CPU; on other devices, where that would wait for the device, weights of tokens
    more than ``max_length`` apart are negative.

    There are no attention weights to return.

    Args:
        embed_dim: Features of query and output.
        num_heads: Query heads H, a divisor of ``embed_dim``.
        act_fun: f, ``"relu"`` or ``"elu"`` (1 + elu(x)).
        max_length: m, which decoding needs.
        has_outproj: Whether there is an ``out_proj``.
        **options: Those of :class:`ProjectedAttention`.

    Raises:
        ValueError: An unknown ``act_fun``, a ``max_length`` below 1.

    Example:
        >>> attention = CosformerAttention(64, 4, causal=True, max_length=1000)
        >>> attention(torch.randn(100, 2, 64))[0].shape
        torch.Size([100, 2, 64])
    """

    names: ClassVar[tuple[str, ...]] = ("cosformer",)
    max_length: int | None

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        act_fun: str = "relu",
        max_length: int | None = None,
        has_outproj: bool = True,
        **options: Unpack[AttentionOptions],
    ) -> None:
        """Keep the activation and the length."""
        super().__init__(embed_dim, num_heads, **options)
        if act_fun not in ("relu", "elu"):
            raise ValueError(
                f"CosformerAttention: act_fun must be 'relu' or 'elu', got {act_fun!r}"
            )
        check_max_length(self.title, max_length)
        self.act_fun = act_fun
        self.max_length = max_length
        self.has_outproj = has_outproj
        if not has_outproj:
            self.out_proj = nn.Identity()  # type: ignore[assignment]

    def extra_repr(self) -> str:
        """The mechanism's options before the common ones."""
        parts = [f"act_fun={self.act_fun!r}"]
        if self.max_length is not None:
            parts.append(f"max_length={self.max_length}")
        return ", ".join([*parts, super().extra_repr()])

    @staticmethod
    def add_attn_specific_args(parent_parser: ArgumentParser) -> ArgumentParser:
        """Add ``--act-fun`` and ``--max-length``."""
        group = parent_parser.add_argument_group("Attention")
        add_nested_argument(
            group,
            "--act-fun",
            choices=("relu", "elu"),
            default="relu",
            help="activation of queries and keys (default: %(default)s)",
        )
        add_nested_argument(
            group,
            "--max-length",
            type=int,
            default=None,
            help="tokens of the longest sequence, which decoding needs "
            "(default: %(default)s)",
        )
        return parent_parser

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
        check_decoding(self.title, decoding, self.max_length)
        query_position: Tensor | None = None
        if offset is not None:
            query_position = token_positions(queries, q, offset)
        # Rows of queries that are not the keys.
        other = Rows() if self.hides_future else queries
        output, kv, k_sum = functional.cosformer_attention_with_state(
            q,
            k,
            v,
            causal=self.hides_future,
            activation=self.act_fun,
            max_length=self.max_length,
            query_position=query_position,
            state_kv=lookup(state, "prev_sum_kv"),
            state_k=lookup(state, "prev_sum_k"),
            lengths=keys.lengths,
            order=keys.order,
            query_lengths=other.lengths,
            query_order=other.order,
        )
        return output, kv, k_sum, k_sum.new_empty([0])
