"""Constructor options, shared by all mechanisms, and the error for unknown ones."""

import difflib
import inspect
from collections.abc import Iterable
from typing import Any

from typing_extensions import TypedDict


class AttentionOptions(TypedDict, total=False):
    """Options of :class:`subquad.nn.ProjectedAttention`, explained there."""

    kdim: int | None
    vdim: int | None
    num_kv_heads: int | None
    bias: bool
    dropout: float
    rotary_base: float | None
    cross: bool
    causal: bool
    batch_first: bool


def valid_options(cls: type) -> list[str]:
    """Keyword arguments that ``cls`` and the classes it hands them to understand."""
    names: dict[str, None] = {}
    for base in cls.__mro__:
        init = base.__dict__.get("__init__")
        if init is None or base.__module__.startswith("torch."):
            continue
        for parameter in list(inspect.signature(init).parameters.values())[1:]:
            if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
                names[parameter.name] = None
    return list(names)


def nearest(name: str, valid: Iterable[str]) -> str | None:
    """The valid name that ``name`` was probably meant to be."""
    matches = difflib.get_close_matches(name, list(valid), n=1, cutoff=0.5)
    return matches[0] if matches else None


def unknown_option(cls: type, unknown: dict[str, Any]) -> TypeError:
    """The error for keyword arguments that no constructor took."""
    name = next(iter(unknown))
    valid = valid_options(cls)
    match = nearest(name, valid)
    advice = f"did you mean {match!r}" if match else f"valid are {', '.join(valid)}"
    return TypeError(f"{cls.__name__}: unknown option {name!r}, {advice}")
