"""Windows in plain PyTorch: the kinds that are measured and the benchmark reference."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Window:
    """Which keys a query sees; see ``subquad.functional.window_attention``."""

    block: int
    left: int
    right: int
    causal: bool

    def visible(self, position: Tensor, key: Tensor, length: int) -> Tensor:
        """Whether the query at each position sees each key of 0 to ``length``."""
        begin = torch.div(position, self.block, rounding_mode="floor") * self.block
        seen = (key >= begin - self.left) & (key < begin + self.block + self.right)
        if self.causal:
            seen = seen & (key <= position)
        return seen & (key >= 0) & (key < length)

    def pairs(self, length: int) -> int:
        """Number of pairs of a query and a key that it sees."""
        position = torch.arange(length)
        begin = torch.div(position, self.block, rounding_mode="floor") * self.block
        end = begin + self.block + self.right
        if self.causal:
            end = torch.minimum(end, position + 1)
        seen = end.clamp(max=length) - (begin - self.left).clamp(min=0)
        return int(seen.sum())


KINDS = ("block", "sliding", "causal")


def window_of(kind: str, size: int) -> Window:
    """A window of one of the ``KINDS``.

    ``block``: a block of ``size`` and the blocks before and after it; ``sliding``:
    ``size`` keys on each side; ``causal``: the last ``size`` keys, the query's own
    included.
    """
    if kind == "block":
        return Window(size, size, size, False)
    if kind == "sliding":
        return Window(1, size, size, False)
    return Window(1, size - 1, 0, True)


@dataclass(frozen=True)
class Banded:
    """Window attention over strided views: chunks of queries, each with its band.

    Attributes:
        window: What a query sees.
        length: L.
        chunk: Queries per chunk, a multiple of the window's block. The band has
            ``chunk + left + right`` keys.
        mask: ``[L / chunk, chunk, band]``, 0 or -inf, added to the logits.
    """

    window: Window
    length: int
    chunk: int
    mask: Tensor

    @classmethod
    def of(cls, window: Window, length: int, longest: int) -> Banded:
        """Choose the chunk: one block, or about the window, at most ``longest``."""
        reach = max(window.left, window.right)
        chunk = window.block
        if chunk == 1:
            chunk = min(max(1 << (reach - 1).bit_length(), 32), longest)
        band = chunk + window.left + window.right
        first = torch.arange(0, length, chunk)[:, None, None]
        position = first + torch.arange(chunk)[:, None]
        key = first - window.left + torch.arange(band)
        # Queries that pad the last chunk see everything: their results are cut off.
        seen = window.visible(position, key, length) | (position >= length)
        mask = torch.zeros(seen.shape).masked_fill_(~seen, -torch.inf)
        return cls(window, length, chunk, mask)

    def double(self) -> Banded:
        """The same in float64."""
        return dataclasses.replace(self, mask=self.mask.double())

    def _bands(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        left, right = self.window.left, self.window.right
        more = -self.length % self.chunk
        band = self.chunk + left + right
        B, H, _, D = q.shape
        q = F.pad(q, (0, 0, 0, more)).view(B, H, -1, self.chunk, D)
        k = F.pad(k, (0, 0, left, right + more)).unfold(2, band, self.chunk)
        v = F.pad(v, (0, 0, left, right + more)).unfold(2, band, self.chunk)
        return q, k, v  # [B, H, n, chunk, D], [B, H, n, D, band] twice

    def einsum(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The benchmark reference: two einsums and a masked softmax."""
        q, k, v = self._bands(q * q.shape[-1] ** -0.5, k, v)
        logits = torch.einsum("bhncd,bhndk->bhnck", q, k) + self.mask
        output = torch.einsum("bhnck,bhndk->bhncd", logits.softmax(-1), v)
        return output.flatten(2, 3)[:, :, : self.length]

    def sdpa(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The same, with the chunks as a batch of PyTorch's softmax attention."""
        B, H, _, D = q.shape
        n = self.mask.shape[0]
        q, k, v = self._bands(q, k, v)
        q = q.transpose(1, 2).flatten(0, 1)
        k = k.permute(0, 2, 1, 4, 3).flatten(0, 1)
        v = v.permute(0, 2, 1, 4, 3).flatten(0, 1)
        mask = self.mask[:, None].repeat(B, 1, 1, 1)  # [B n, 1, chunk, band]
        output = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        output = output.view(B, n, H, self.chunk, D).transpose(1, 2)
        return output.reshape(B, H, -1, D)[:, :, : self.length]
