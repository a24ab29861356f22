"""A project's surface under the import name of the project."""

import importlib
import sys

import torch

from subquad.nn.options import nearest

# Project: import name it claims.
_CLAIMS = {
    "cab": "efficient_attention",
    "linear_attention_transformer": "linear_attention_transformer",
}
_installed: dict[str, str] = {}  # import name: project


def install(project: str) -> None:
    """Let ``import`` find a project's surface under the project's own name.

    Unedited code that imports the project then runs on the library, and checkpoints
    that pickle the project's classes load. Installing twice changes nothing.

    Args:
        project: ``"cab"``: claims ``efficient_attention``;
            ``"linear_attention_transformer"``: its own name.

    Raises:
        ValueError: An unknown project.
        RuntimeError: The import name belongs to another module already.

    Example:
        >>> install("cab")
        >>> from efficient_attention import LocalAttention
        >>> uninstall("cab")
    """
    name = _claim(project)
    if _installed.get(name) == project:
        return
    if name in _installed or name in sys.modules:
        owner = _installed.get(name, "a module that was imported before")
        raise RuntimeError(
            f"compat.install: {project!r} claims the import name {name!r}, which "
            f"belongs to {owner}"
        )
    module = importlib.import_module(f"subquad.compat.{project}")
    # Modules inside of it too: a second import would make twins of their classes.
    inside = f"{module.__name__}."
    for path, submodule in list(sys.modules.items()):
        if path.startswith(inside):
            sys.modules[f"{name}.{path.removeprefix(inside)}"] = submodule
    sys.modules[name] = module
    _installed[name] = project
    namespace = getattr(module, "NestedNamespace", None)
    if namespace is not None:
        torch.serialization.add_safe_globals([(namespace, f"{name}.NestedNamespace")])


def uninstall(project: str) -> None:
    """Undo :func:`install`; without effect where it was not called.

    Args:
        project: What :func:`install` had.

    Raises:
        ValueError: An unknown project.
    """
    name = _claim(project)
    if _installed.get(name) == project:
        del _installed[name]
        for path in list(sys.modules):
            if path == name or path.startswith(f"{name}."):
                del sys.modules[path]


def _claim(project: str) -> str:
    if project not in _CLAIMS:
        match = nearest(project, _CLAIMS)
        advice = f", did you mean {match!r}" if match else ""
        raise ValueError(f"compat: unknown project {project!r}{advice}")
    return _CLAIMS[project]
