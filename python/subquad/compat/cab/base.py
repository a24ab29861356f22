"""What the classes of the surface share."""

import warnings
from typing import Any

from torch import Tensor

from subquad import nn
from subquad.errors import UnsupportedPattern
from subquad.nn.rows import Rows

_warned: set[tuple[str, str]] = set()


def warn_unknown(title: str, unknown: dict[str, Any]) -> None:
    """Warn once of each keyword argument that the project swallowed."""
    for name in unknown:
        if (title, name) not in _warned:
            _warned.add((title, name))
            warnings.warn(
                f"{title}: the keyword argument {name!r} has no effect", stacklevel=3
            )


class AbstractAttention(nn.AbstractAttention):
    """Base class to register one's own modules under.

    Args:
        cross: Keys and values come from another sequence than the queries.
        causal: A query sees no token that comes after it.
        **options: Those of :class:`subquad.nn.AbstractAttention`; unknown ones are
            accepted with a warning.
    """

    def __init__(
        self, cross: bool = False, causal: bool = False, **options: Any
    ) -> None:
        """Keep the pattern."""
        super().__init__(cross=cross, causal=causal, **options)

    def _refuse_options(self, unknown: dict[str, Any]) -> None:
        warn_unknown(type(self).__name__, unknown)

    def _check_sizes(self, embed_dim: int, num_heads: int, kv_heads: int) -> None:
        if embed_dim % num_heads:
            raise UnsupportedPattern(
                "embed_dim must be divisible by num_heads, got "
                f"{embed_dim} and {num_heads}"
            )

    def _erase(self, input: Tensor, rows: Rows, batch_first: bool) -> Tensor:
        return input  # the project projects padding, caches it and may attend to it
