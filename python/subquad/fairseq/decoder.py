"""fairseq's decoder over modules that hide the future by themselves."""

from fairseq.models.transformer import TransformerDecoderBase
from torch import Tensor

from subquad.errors import UnsupportedPattern


class Decoder(TransformerDecoderBase):  # type: ignore[misc]
    """Asks cross-attention for weights only if it can give them.

    Attributes:
        gives_weights: The weights of cross-attention are over the source's tokens.
        hides_future: Self-attention is causal in itself.
    """

    gives_weights: bool
    hides_future: bool

    def extract_features(
        self,
        prev_output_tokens: Tensor,
        encoder_out: dict[str, list[Tensor]] | None,
        incremental_state: dict[str, dict[str, Tensor | None]] | None = None,
        full_context_alignment: bool = False,
        alignment_layer: int | None = None,
        alignment_heads: int | None = None,
    ) -> tuple[Tensor, dict[str, list[Tensor | None]]]:
        """As fairseq's.

        Raises:
            UnsupportedPattern: Attention to the future or alignments are asked for,
                which the mechanisms do not have.
        """
        if full_context_alignment and self.hides_future:
            raise UnsupportedPattern(
                "--decoder-self-attention: full_context_alignment needs attention to "
                "the future"
            )
        if not self.gives_weights:
            if alignment_layer is not None:
                raise UnsupportedPattern(
                    "--cross-attention: alignments need weights over the source; use "
                    "softmax"
                )
            alignment_layer = -1  # that of no layer
        return self.extract_features_scriptable(  # type: ignore[no-any-return]
            prev_output_tokens,
            encoder_out,
            incremental_state,
            full_context_alignment,
            alignment_layer,
            alignment_heads,
        )


class CausalDecoder(Decoder):
    """Makes no mask ``[L, L]``."""

    def buffered_future_mask(self, tensor: Tensor) -> Tensor | None:
        """Nothing: self-attention hides the future."""
        return None
