"""A causal language model over bytes or characters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from subquad.nn import Projection, get_mechanism

IncrementalState = dict[str, dict[str, Tensor | None]]

_POSITIONS = ("rotary", "learned", "none")
# The model's own entry of the incremental state; the modules add theirs beside it.
_STATE = "LanguageModel"


class FeedForward(nn.Module):
    """Two linear layers with a GELU between them, ``[..., width]`` in and out."""

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        """Build the layers.

        Args:
            width: features in and out.
            hidden: features between the layers.
            dropout: probability of dropping an output feature in training.
        """
        super().__init__()
        self.expand = Projection(width, hidden)
        self.contract = Projection(hidden, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, input: Tensor) -> Tensor:
        """Map every position by itself."""
        output: Tensor = self.dropout(self.contract(F.gelu(self.expand(input))))
        return output


class DecoderBlock(nn.Module):
    """A pre-norm block: ``x + attention(norm(x))``, then ``x + feed_forward(norm(x))``.

    Args:
        attention: causal module, ``[B, L, width]`` to ``([B, L, width], weights)``.
        feed_forward: module ``[B, L, width]`` to ``[B, L, width]``.
        width: features.
        dropout: probability of dropping an output feature of the attention.
    """

    def __init__(
        self,
        attention: nn.Module,
        feed_forward: nn.Module,
        width: int,
        dropout: float,
    ) -> None:
        """Take the two sublayers."""
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = attention
        self.dropout = nn.Dropout(dropout)
        self.feed_forward_norm = nn.LayerNorm(width)
        self.feed_forward = feed_forward

    def forward(
        self, input: Tensor, incremental_state: IncrementalState | None = None
    ) -> Tensor:
        """Apply both sublayers to ``input [B, L, width]``."""
        normed = self.attention_norm(input)
        attended, _ = self.attention(
            normed, normed, normed, incremental_state=incremental_state
        )
        hidden = input + self.dropout(attended)
        output: Tensor = hidden + self.feed_forward(self.feed_forward_norm(hidden))
        return output


class LanguageModel(nn.Module):
    """Causal decoder over a small vocabulary with any causal attention of the registry.

    Token embedding, ``layers`` pre-norm blocks, a last norm, and the embedding again
    as output layer (tied weights).

    Args:
        vocabulary: number of different tokens.
        attention: registered name of a mechanism that can be causal.
        attention_args: the mechanism's own constructor arguments.
        layers: number of blocks.
        width: features per position.
        heads: attention heads.
        feed_forward: features inside the feed-forward layers, default ``4 * width``.
        dropout: probability for attention weights and sublayer outputs.
        positions: ``"rotary"`` (in the attention), ``"learned"`` (added to the
            embedding, at most ``context`` of them) or ``"none"``.
        context: longest sequence with learned positions.

    Raises:
        ValueError: an unknown kind of positions, or what the mechanism refuses.
        UnsupportedPattern: the mechanism cannot be causal.

    Example:
        >>> model = LanguageModel(256, width=32, heads=2, layers=1)
        >>> model(torch.zeros(2, 7, dtype=torch.int64)).shape
        torch.Size([2, 7, 256])
    """

    def __init__(
        self,
        vocabulary: int,
        *,
        attention: str = "local",
        attention_args: Mapping[str, Any] | None = None,
        layers: int = 4,
        width: int = 128,
        heads: int = 4,
        feed_forward: int | None = None,
        dropout: float = 0.0,
        positions: str = "rotary",
        context: int = 1024,
    ) -> None:
        """Build embedding, blocks and initial weights."""
        super().__init__()
        if positions not in _POSITIONS:
            raise ValueError(
                f"LanguageModel: positions must be one of {', '.join(_POSITIONS)}, "
                f"got {positions!r}"
            )
        arguments = dict(attention_args or {}, causal=True, batch_first=True)
        if positions == "rotary":
            arguments["rotary_base"] = 10000.0
        mechanism: Any = get_mechanism(attention)
        self.embedding = nn.Embedding(vocabulary, width)
        self.position = nn.Embedding(context, width) if positions == "learned" else None
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            DecoderBlock(
                mechanism(width, heads, dropout=dropout, **arguments),
                FeedForward(width, feed_forward or 4 * width, dropout),
                width,
                dropout,
            )
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            elif isinstance(module, FeedForward):
                # Each of the 2 * layers residual sums adds its share of the variance.
                std = 0.02 * (2 * len(self.blocks)) ** -0.5
                nn.init.normal_(module.expand.weight, std=0.02)
                nn.init.normal_(module.contract.weight, std=std)
                nn.init.zeros_(module.expand.bias)
                nn.init.zeros_(module.contract.bias)

    def forward(
        self, tokens: Tensor, incremental_state: IncrementalState | None = None
    ) -> Tensor:
        """Score the next token at every position.

        Args:
            tokens: ``[B, L]`` int64.
            incremental_state: empty at first, then the same dict with each call: the
                tokens continue the sequence of the calls before.

        Returns:
            Logits ``[B, L, vocabulary]``.

        Raises:
            IndexError: more tokens than there are learned positions.
        """
        hidden: Tensor = self.embedding(tokens)  # [B, L, width]
        if self.position is not None:
            seen = self._count(tokens, incremental_state)  # [B, 1]
            steps = torch.arange(tokens.shape[1], device=tokens.device)
            hidden = hidden + self.position(seen + steps)
        hidden = self.dropout(hidden)
        for block in self.blocks:
            hidden = block(hidden, incremental_state)
        return F.linear(self.norm(hidden), self.embedding.weight)

    @staticmethod
    def _count(tokens: Tensor, incremental_state: IncrementalState | None) -> Tensor:
        """Return how many tokens each row had before these, and add these."""
        seen = tokens.new_zeros(tokens.shape[0], 1)
        if incremental_state is not None:
            saved = incremental_state.get(_STATE, {}).get("seen")
            seen = seen if saved is None else saved
            incremental_state[_STATE] = {"seen": seen + tokens.shape[1]}
        return seen
