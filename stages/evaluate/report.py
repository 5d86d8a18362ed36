"""report.html: one page that opens anywhere, with no request to outside, in dark and in light.

Tables are HTML, made here. Charts are drawn in the browser by plotly.js, which stands in the page, from one block
of JSON: a chart is a list of traces with a layout, and page.js adds the colours. The page has a tab for each of
the sections (sections.py), and all of it can be reached with the keyboard.

Equal inputs give equal bytes: no time, host or path, and no random names.
"""

from __future__ import annotations

import json
from html import escape
from pathlib import Path
from typing import Any

from stages.evaluate.page_data import Findings, page_data
from stages.evaluate.sections import sections

TABS, PANELS = "<!--more tabs-->", "<!--more panels-->"
DATA = '<script type="application/json" id="data">'


def page(folder: Path, findings: Findings) -> str:
    """The whole page.

    Args:
        folder: `data`, of which the metrics of the stages before and the losses of training are read.
    """
    metrics = findings.metrics
    opening = " · ".join(f"{escape(name)} {escape(value)}" for name, value in findings.facts.items())
    head = f"""<h1>{metrics["bits_per_byte"]:.3f} bits per byte</h1>
<p>On test text that no stage trained on: 95% interval {metrics["bits_per_byte_low"]:.3f} to
{metrics["bits_per_byte_high"]:.3f}, test loss {metrics["test_loss"]:.3f} nats a token, perplexity
{metrics["perplexity"]:.1f}. {opening}.</p>"""
    return assembled("Evaluation", head, sections(folder, findings), page_data(folder, findings))


def assembled(title: str, head: str, named: dict[str, tuple[str, str]], data: dict[str, Any]) -> str:
    """A page of tabs, each given as its title and its inside by its name; `data` is what page.js draws."""
    from plotly.offline import get_plotlyjs

    style, script = (Path(__file__).with_name(f"page.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    tabs = "".join(_tab(name, words) for name, (words, _) in named.items())
    panels = "\n".join(_panel(name, html) for name, (_, html) in named.items())
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title><style>{style}</style></head><body>
<div id="head">{head}</div>
<div role="tablist" aria-label="Sections">{tabs}{TABS}</div>
{panels}
{PANELS}
{DATA}{_inert(data)}</script>
<script>{get_plotlyjs()}</script>
<script>{script}</script>
</body></html>
"""


def with_tab(page: str, name: str, title: str, inside: str, charts: dict[str, Any]) -> str:
    """The page with one tab more, and its charts. Raises ValueError if it is no page of this kind."""
    before, _, rest = page.partition(DATA)
    text, _, after = rest.partition("</script>")
    if TABS not in before or PANELS not in before or not after:
        raise ValueError("it is no page that tabs can be added to")
    if not after.endswith("</html>\n"):
        raise ValueError("it is cut off")
    before = before.replace(TABS, _tab(name, title) + TABS, 1).replace(PANELS, f"{_panel(name, inside)}\n{PANELS}", 1)
    data = json.loads(text)
    data["charts"] |= charts
    return f"{before}{DATA}{_inert(data)}</script>{after}"


def _tab(name: str, title: str) -> str:
    return (
        f'<button role="tab" id="tab-{name}" data-name="{name}" aria-controls="panel-{name}">{escape(title)}</button>'
    )


def _panel(name: str, inside: str) -> str:
    return f'<section role="tabpanel" id="panel-{name}" aria-labelledby="tab-{name}" hidden>{inside}</section>'


def _inert(value: object) -> str:
    """JSON that no text within it can end or turn into markup."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
