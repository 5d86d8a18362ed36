"""Takes the marks of reStructuredText out of a docstring and leaves its prose and its code.

    See :func:`~numpy.linalg.norm` and ``axis``.   ->   See norm and axis.
    .. versionadded:: 1.7.0                        ->   Version added: 1.7.0
    .. code-block:: python                         ->   (line dropped, the indented code stays)
    Use it as follows::                            ->   Use it as follows:

A light clean-up by line and by pattern, not a parser: section rules, lists, tables and doctests stay
as they are, because they are part of how documentation reads.
"""

from __future__ import annotations

import re

ROLE = re.compile(r":[A-Za-z][\w+.:-]*:`([^`]+)`")
LINK = re.compile(r"`([^`<]+?)\s*<[^`>]+>`__?")
REFERENCE = re.compile(r"`([^`]+)`__?(?!\w)")
LITERAL = re.compile(r"``([^`\n]+(?:\n[^`\n]+)?)``")
TITLE_AND_TARGET = re.compile(r"\A(.+?)\s*<[^>]*>\Z", re.DOTALL)
FOOTNOTE = re.compile(r"(\[[^\]\s]+\])_(?!\w)")
DIRECTIVE = re.compile(r"\A(\s*)\.\. ([A-Za-z][\w:+.-]*)::\s*(.*)\Z")
CITATION = re.compile(r"\A(\s*)\.\. (\[[^\]]+\])\s*(.*)\Z")
COMMENT_OR_TARGET = re.compile(r"\A\s*\.\.(\s.*)?\Z")
OPTION = re.compile(r"\A\s+:[a-z][\w-]*:(\s.*)?\Z")
DIRECTIVES_WITH_PROSE = {
    "versionadded": "Version added",
    "versionchanged": "Version changed",
    "deprecated": "Deprecated",
    "seealso": "See also",
    "rubric": "",
    "topic": "",
    **{name: name.capitalize() for name in ("note", "warning", "tip", "hint", "important", "caution", "attention")},
}


def plain(docstring: str) -> str:
    """The docstring without roles, directives, link targets and literal marks."""
    lines: list[str] = []
    after_directive = False
    for line in docstring.split("\n"):
        if after_directive and OPTION.match(line):
            continue
        replaced = _without_directive(line) if ".." in line else line
        after_directive = replaced is not line
        if replaced is not None:
            lines.append(_without_literal_block_mark(replaced))
    return _without_inline_marks("\n".join(lines))


def _without_directive(line: str) -> str | None:
    """The line as prose, or None if nothing of it is to be read."""
    if directive := DIRECTIVE.match(line):
        indent, name, argument = directive.groups()
        if name not in DIRECTIVES_WITH_PROSE:
            return None
        label = DIRECTIVES_WITH_PROSE[name]
        return indent + ": ".join(part for part in (label, argument) if part) if label or argument else None
    if citation := CITATION.match(line):
        return " ".join(part for part in citation.groups() if part).rstrip()
    return None if COMMENT_OR_TARGET.match(line) else line


def _without_literal_block_mark(line: str) -> str:
    stripped = line.rstrip()
    if not stripped.endswith("::"):
        return line
    return "" if stripped.strip() == "::" else stripped[:-1]


def _without_inline_marks(text: str) -> str:
    text = FOOTNOTE.sub(r"\1", text)
    if "`" not in text:
        return text
    text = ROLE.sub(lambda found: _title(found.group(1)), text)
    text = LITERAL.sub(r"\1", text)
    text = LINK.sub(r"\1", text)
    return REFERENCE.sub(r"\1", text)


def _title(target: str) -> str:
    """What a reader sees of a role: its title, or the last part of `~a.b.c`."""
    if titled := TITLE_AND_TARGET.match(target):
        return titled.group(1)
    if target.startswith("~"):
        return target.rpartition(".")[2].lstrip("~")
    return target.lstrip("!")
