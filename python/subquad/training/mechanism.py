"""Mechanisms and their own options on the command line of a training command."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from subquad.nn import get_mechanism
from subquad.training.errors import CommandError

# For text: a window wider than the mechanism's own default, and a longest sequence,
# without which a trained model could not generate.
TEXT_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "cosformer": {"max_length": 4096},
    "local": {"window_size": 64},
}
_PREFIX = "attn_args."


@dataclass(frozen=True)
class Mechanism:
    """A registered mechanism as the command line sees it.

    Attributes:
        name: in the registry.
        parser: of its own options; those not given leave no attribute behind.
        defaults: of its own options, by argument name.
    """

    name: str
    parser: argparse.ArgumentParser
    defaults: dict[str, Any]

    @classmethod
    def find(
        cls, name: str, defaults: Mapping[str, Mapping[str, Any]] = TEXT_DEFAULTS
    ) -> Mechanism:
        """Return the mechanism of a name.

        Args:
            name: in the registry.
            defaults: of arguments, by mechanism, where they are not its own.

        Raises:
            CommandError: there is none of that name.
        """
        try:
            mechanism = get_mechanism(name)
        except ValueError as error:
            raise CommandError(f"--attention: {error}") from None
        # Its groups keep the handler when another parser takes them over.
        parser = argparse.ArgumentParser(add_help=False, conflict_handler="resolve")
        mechanism.add_attn_specific_args(parser)
        usual = mechanism.names[0] if mechanism.names else name
        own = {}
        for action in parser._actions:
            argument = action.dest.removeprefix(_PREFIX)
            own[argument] = defaults.get(usual, {}).get(argument, action.default)
            action.default = argparse.SUPPRESS
            help = (action.help or "").replace("%(default)s", str(own[argument]))
            action.help = f"of {name}: {help}"
            action.metavar = action.metavar or "X"
            if argument == "causal":  # a language model leaves no choice
                del own[argument]
                action.help = argparse.SUPPRESS
        return cls(name, parser, own)

    def own(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return this mechanism's arguments, given or default."""
        own = {name: given[name] for name in self.defaults if name in given}
        return self.defaults | own


def mechanism_arguments(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the mechanisms' arguments among parsed options, by argument name."""
    return {
        name.removeprefix(_PREFIX): value
        for name, value in given.items()
        if name.startswith(_PREFIX)
    }
