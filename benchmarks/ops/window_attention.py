"""Window attention against plain PyTorch, full softmax attention and peers."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from subquad import functional
from subquad.benchmarks.peers import peer
from subquad.benchmarks.registry import (
    Build,
    Case,
    Contender,
    Future,
    Options,
    Results,
    Run,
    UnavailableError,
    differentiated,
    random,
    register,
)
from subquad.benchmarks.windows import KINDS, Banded, Window, window_of

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]

BATCH, HEADS, WIDTH = 1, 8, 64
# Beyond this length a mask of L x L numbers takes a gigabyte.
_LONGEST_MASK = 4096
# Beyond this length softmax over all keys takes minutes.
_LONGEST_SOFTMAX = 16384


@register(
    "window_attention",
    "softmax over a window of keys; B=1, H=8, D=64, float32",
    KINDS,
)
def cases(options: Options) -> Iterator[Case]:
    """Every kind, window, length and pass."""
    for kind in options.chosen(KINDS):
        for size in options.windows:
            for length in options.lengths:
                for which in options.passes:
                    yield _case(kind, size, length, which)


def window_flops(window: Window, length: int, backward: bool) -> int:
    """Useful operations: two products per pair forward, five more backward."""
    products = 7 if backward else 2
    return BATCH * HEADS * window.pairs(length) * products * 2 * WIDTH


def _case(kind: str, size: int, length: int, which: str) -> Case:
    window, backward = window_of(kind, size), which == "both"
    shape = (BATCH, HEADS, length, WIDTH)
    tensor = 4 * BATCH * HEADS * length * WIDTH
    lse = 4 * BATCH * HEADS * length
    # Forward: q, k, v, output; backward: these, and the gradients of all four.
    touched = 4 * tensor + lse + (8 * tensor + lse if backward else 0)
    return Case(
        entry="window_attention",
        labels={"kind": kind, "window": size, "L": length, "pass": which},
        inputs=lambda: tuple(random(shape, seed) for seed in range(3)),
        definition=_definition(window),
        contenders=_contenders(kind, size, length),
        useful_flops=window_flops(window, length, backward),
        touched_bytes=touched,
        tensor_bytes=4 * tensor,
        future=Future(axis=2, inputs=3) if window.causal else None,
    )


def _contenders(kind: str, size: int, length: int) -> tuple[Contender, ...]:
    window = window_of(kind, size)

    # The causal window of local-attention has one key more.
    wider = _definition(Window(1, size, 0, True)) if window.causal else None
    return (
        Contender("subquad", _contender(lambda _, __: ours(window))),
        Contender("einsum", _contender(lambda L, _: Banded.of(window, L, 128).einsum)),
        Contender(
            "SDPA chunks", _contender(lambda L, _: Banded.of(window, L, 64).sdpa)
        ),
        Contender(
            "SDPA",
            _contender(lambda L, _: softmax(window.causal, L)),
            function="softmax over all keys",
            share=("SDPA", length, window.causal),
        ),
        Contender("SDPA + mask", _contender(lambda L, _: _masked(window, L))),
        Contender(
            "einsum compiled",
            _contender(lambda L, _: _compiled(Banded.of(window, L, 128).einsum)),
            extra="compile",
            compiled=True,
        ),
        Contender(
            "local-attention",
            _contender(lambda _, __: _local_attention(kind, size)),
            extra="peers",
            definition=wider,
        ),
        Contender(
            "FlexAttention",
            _contender(lambda L, backward: _flex(window, L, backward)),
            extra="peers",
            compiled=True,
        ),
    )


def _contender(attention: Callable[[int, bool], Attention]) -> Build:
    """A build from what makes the attention for a length and a pass."""

    def build(inputs: Results, backward: bool) -> Run:
        q, k, v = inputs
        attend = attention(q.shape[2], backward)
        return differentiated(lambda: attend(q, k, v), inputs, q.shape, backward)

    return build


def ours(window: Window) -> Attention:
    """The operator."""
    return lambda q, k, v: functional.window_attention(
        q, k, v, window.block, window.left, window.right, window.causal
    )


def softmax(causal: bool, length: int) -> Attention:
    """PyTorch's attention to all keys."""
    check_softmax(length)
    return lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=causal)


def check_softmax(length: int) -> None:
    """Refuse softmax over all keys where it takes too long.

    Raises:
        UnavailableError: The length.
    """
    if length > _LONGEST_SOFTMAX:
        raise UnavailableError(f"not run beyond L = {_LONGEST_SOFTMAX}: L x L time")


def _definition(window: Window) -> Build:
    """The benchmark reference in float64, head by head to spare memory."""

    def build(inputs: Results, backward: bool) -> Run:
        length = inputs[0].shape[2]
        banded = Banded.of(window, length, 128).double()

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            heads = [slice(h, h + 1) for h in range(q.shape[1])]
            return torch.cat(
                [banded.einsum(q[:, h], k[:, h], v[:, h]) for h in heads], 1
            )

        q, k, v = (x.detach().double() for x in inputs)
        return differentiated(lambda: attend(q, k, v), (q, k, v), q.shape, backward)

    return build


def _masked(window: Window, length: int) -> Attention:
    if length > _LONGEST_MASK:
        raise UnavailableError(f"not run beyond L = {_LONGEST_MASK}: L x L memory")
    i = torch.arange(length)
    mask = window.visible(i[:, None], i, length)
    return lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def _compiled(attention: Attention) -> Attention:
    compiled: Attention = torch.compile(attention, fullgraph=True, dynamic=False)
    return compiled


def _local_attention(kind: str, size: int) -> Attention:
    module: Attention = peer("local-attention").LocalAttention(
        window_size=size,
        causal=kind == "causal",
        look_backward=1,
        look_forward=0 if kind == "causal" else 1,
        exact_windowsize=kind != "block",
        use_rotary_pos_emb=False,
        autopad=True,
    )
    return module


def _flex(window: Window, length: int, backward: bool) -> Attention:
    if backward:
        raise UnavailableError("PyTorch has no backward of it on the CPU")
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    def visible(_: Tensor, __: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return window.visible(i, j, length)

    mask = create_block_mask(visible, 1, 1, length, length, device="cpu")
    compiled = torch.compile(flex_attention, dynamic=False)
    return lambda q, k, v: compiled(q, k, v, block_mask=mask)
