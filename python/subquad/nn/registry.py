"""Mechanisms by class name and by the name a command line uses."""

import argparse
from typing import Any, TypeVar

from subquad.nn.base import AbstractAttention
from subquad.nn.options import nearest

Module = TypeVar("Module", bound=type)


class Registry:
    """Attention classes by name, in the order of their registration."""

    def __init__(self) -> None:
        """Begin empty."""
        self.modules: dict[str, type[AbstractAttention]] = {}
        self.available: list[str] = []

    def register(self, cls: Module) -> Module:
        """Class decorator: make ``cls`` known by its ``__name__``.

        Raises:
            ValueError: The name is taken, or ``cls`` is no attention class.
        """
        if cls.__name__ in self.modules:
            raise ValueError(f"Cannot register duplicate class ({cls.__name__})")
        if not issubclass(cls, AbstractAttention):
            raise ValueError(f"Class {cls.__name__} must extend AbstractAttention")
        self.modules[cls.__name__] = cls
        self.available.append(cls.__name__)
        return cls

    def get(self, name: str) -> type[AbstractAttention]:
        """The class called ``name``.

        Raises:
            KeyError: There is none.
        """
        return self.modules[name]


_registry = Registry()
MODULE_REGISTRY = _registry.modules
AVAILABLE_ATTENTIONS = _registry.available
register_cls = _registry.register
get_cls = _registry.get


def mechanisms() -> dict[str, type[AbstractAttention]]:
    """Registered classes by the usual name of their mechanism."""
    return {cls.names[0]: cls for cls in MODULE_REGISTRY.values() if cls.names}


def get_mechanism(name: str) -> type[AbstractAttention]:
    """The class of a mechanism by any of its names, or by its class name.

    Args:
        name: ``"local"``, ``"softmax"``, ``"LocalAttention"``, ...

    Raises:
        ValueError: No mechanism is called so; names the nearest that is.
    """
    known: dict[str, type[AbstractAttention]] = {}
    for cls in MODULE_REGISTRY.values():
        known.update(dict.fromkeys((*cls.names, cls.__name__), cls))
    if name not in known:
        match = nearest(name, known)
        usual = ", ".join(mechanisms())
        advice = f"did you mean {match!r}" if match else f"known are {usual}"
        raise ValueError(f"get_mechanism: unknown mechanism {name!r}, {advice}")
    return known[name]


def mechanism_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options a command line gave to its mechanism.

    Args:
        arguments: Parsed into a :class:`NestedNamespace` by a parser that
            ``add_attn_specific_args`` extended.
    """
    return dict(vars(getattr(arguments, "attn_args", argparse.Namespace())))


def module_from_args(
    name: str,
    arguments: argparse.Namespace,
    embed_dim: int,
    num_heads: int,
    **options: Any,
) -> AbstractAttention:
    """Build a mechanism as a command line asks.

    Args:
        name: What :func:`get_mechanism` knows.
        arguments: See :func:`mechanism_options`.
        embed_dim: Features of query and output.
        num_heads: Query heads.
        **options: Constructor options of the place, such as ``causal=True``; they
            win over the command line's.

    Raises:
        ValueError: No mechanism is called so.
        TypeError: An option it does not know.
    """
    cls: Any = get_mechanism(name)
    module: AbstractAttention = cls(
        embed_dim, num_heads, **{**mechanism_options(arguments), **options}
    )
    return module
