"""Formulas as MathML, made when the site is built: pages need no script for them."""

import html
import re
from typing import Any

from latex2mathml.converter import convert

# What the arithmatex extension leaves of $...$ and $$...$$.
_FORMULA = re.compile(
    r'<(span|div) class="arithmatex">\\(?:\((.*?)\\\)|\[(.*?)\\\])</\1>', re.S
)
# The letters of \mathrm{...} and \mathtt{...}.
_WORD = re.compile(r'(?:<mi mathvariant="(normal|monospace)">[^<]+</mi>){2,}')
# What the converter does not know, it leaves as it is.
_UNKNOWN = re.compile(r"<m[a-z]+>(?:&|\\\w+)</")


def on_page_content(content: str, **_: Any) -> str:
    """Replace the LaTeX of a page, MkDocs' event of that name."""
    return _FORMULA.sub(_mathml, content)


def _mathml(match: re.Match[str]) -> str:
    _, inline, block = match.groups()
    latex = html.unescape(inline or block)
    formula = convert(latex, display="block" if inline is None else "inline")
    if _UNKNOWN.search(formula):
        raise ValueError(f"no MathML for {latex}")
    return _WORD.sub(_word, formula)


def _word(match: re.Match[str]) -> str:
    letters = re.sub(r"<[^>]*>", "", match[0])
    family = ' style="font-family: monospace"' if match[1] == "monospace" else ""
    return f"<mtext{family}>{letters}</mtext>"
