"""Docstrings are written with Sphinx's roles; the site is Markdown."""

import re
import textwrap
from collections.abc import Iterator
from typing import Any

import griffe

_FORMULA = re.compile(r"^( *)\.\. math::\n((?:\1 +.*\n|\n)*)", re.M)
_INLINE = re.compile(r":math:`([^`]*)`")
_ROLE = re.compile(r":(?:func|class|meth|mod):`([^`]*)`")
_CODE = re.compile(r"``(.+?)``")


class SphinxRoles(griffe.Extension):
    """Turns formulas, roles and code of every docstring into Markdown."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Rewrite the docstrings of a package, Griffe's event of that name."""
        for item in _objects(pkg):
            docstring = item.docstring
            if docstring is None:
                continue
            if item.name == "__init__" and "Args:" not in docstring.value:
                item.docstring = None  # the class says it all
            else:
                docstring.value = _markdown(docstring.value, item, pkg)


def _objects(parent: griffe.Object) -> Iterator[griffe.Object]:
    yield parent
    for member in parent.members.values():
        if not member.is_alias:
            yield from _objects(member)


def _markdown(text: str, item: griffe.Object, package: griffe.Module) -> str:
    text = _FORMULA.sub(_formula, text + "\n")
    text = _INLINE.sub(r"$\1$", text)
    text = _ROLE.sub(lambda role: _reference(role[1], item, package), text)
    return _CODE.sub(r"`\1`", text).rstrip()


def _formula(match: re.Match[str]) -> str:
    body = textwrap.dedent(match[2]).strip()
    if "&" in body:
        body = rf"\begin{{split}}{body}\end{{split}}"
    block = textwrap.indent(f"$$\n{body}\n$$", match[1])
    return f"{block}\n\n"


def _reference(name: str, item: griffe.Object, package: griffe.Module) -> str:
    """A link to what a subpackage exports, code for everything else."""
    path = name.split(".")
    if path[0] != package.name:
        path = [*item.path.split(".")[:2], *path]
    if len(path) == 2:
        return f"[`{name}`][{'.'.join(path)}]"
    home = package.members.get(path[1])
    if home is None or path[2] not in (home.exports or ()):
        return f"`{name}`"
    target = path[:3]
    if home.members[path[2]].is_module:  # it hides the function of the same name
        target.append(path[2])
    return f"[`{name}`][{'.'.join(target)}]"
