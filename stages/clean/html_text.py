"""The readable text of an HTML page: paragraphs stay apart, code keeps its lines.

    <h1>Sum</h1><p>Adds <b>two</b>  numbers.</p><pre>a\n  + b</pre>
    ->  "Sum\n\nAdds two numbers.\n\na\n  + b"

Scripts, styles and other hidden parts are left out. White space is collapsed as a browser does it,
except in `pre` and `textarea`. Block elements stand in paragraphs of their own, `br`, rows and list
items on lines of their own. Menus and footers are text too: finding the main content of a page is
not done.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import groupby

from selectolax.lexbor import LexborHTMLParser, LexborNode

HIDDEN = {"script", "style", "noscript", "template", "head", "svg", "iframe", "object", "select", "button", "-comment"}
PREFORMATTED = {"pre", "textarea"}
LINES = {"br", "tr", "li", "dt", "dd"}
CELLS = {"td", "th"}
PARAGRAPHS = {
    *("address", "article", "aside", "blockquote", "body", "details", "div", "dl", "fieldset", "figcaption", "figure"),
    *("footer", "form", "h1", "h2", "h3", "h4", "h5", "h6", "header", "hr", "main", "nav", "ol", "p", "pre"),
    *("section", "summary", "table", "ul", "textarea"),
}
TEXT_NODE = "-text"
SPACE = re.compile(r"[ \t\n\r\f]+")
SPACES = re.compile(r" {2,}")
AROUND_LINE_END = re.compile(r" *\n *")
EMPTY_LINES = re.compile(r"\n{3,}")


def html_to_text(html: str) -> str:
    """The text of a page, with one empty line between paragraphs."""
    root = LexborHTMLParser(html).root
    parts = []
    for preformatted, run in groupby(_pieces(root), key=lambda piece: piece[1]):
        text = "".join(piece for piece, _ in run)
        parts.append(text if preformatted else _flowed(text))
    return "".join(parts).strip("\n")


def _flowed(text: str) -> str:
    text = AROUND_LINE_END.sub("\n", SPACES.sub(" ", text))
    return EMPTY_LINES.sub("\n\n", text)


def _pieces(root: LexborNode | None) -> Iterator[tuple[str, bool]]:
    """Texts and the line ends between elements, in document order, and whether each is preformatted.

    A stack of its own instead of recursion: pages nest thousands of elements deep.
    """
    stack: list[tuple[LexborNode | str, bool]] = [(root, False)] if root else []
    while stack:
        node, preformatted = stack.pop()
        if isinstance(node, str):
            yield node, False
            continue
        tag = node.tag or ""
        if tag == TEXT_NODE:
            text = node.text_content or ""
            yield (text if preformatted else SPACE.sub(" ", text)), preformatted
        elif tag not in HIDDEN:
            before, after = _edges(tag)
            if before:
                yield before, False
            stack.append((after, False))
            inside = preformatted or tag in PREFORMATTED
            stack.extend((child, inside) for child in reversed(list(node.iter(include_text=True))))


def _edges(tag: str) -> tuple[str, str]:
    """What stands before and after an element."""
    if tag in PARAGRAPHS:
        return "\n\n", "\n\n"
    if tag in LINES:
        return "", "\n"
    return "", " " if tag in CELLS else ""
