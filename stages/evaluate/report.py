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

from stages.evaluate.page_data import Findings, page_data
from stages.evaluate.sections import sections

# page.js and page.css, one after the other; part of the code's fingerprint, because a change of them changes the page.
PAGE_SHA256 = "61f057187b86065a2adc60325646a40d786274def7e4fa9ef7b401491639d53a"


def page(folder: Path, findings: Findings) -> str:
    """The whole page.

    Args:
        folder: `data`, of which the metrics of the stages before and the losses of training are read.
    """
    from plotly.offline import get_plotlyjs

    metrics = findings.metrics
    named = sections(folder, findings)
    tabs = "".join(
        f'<button role="tab" id="tab-{name}" data-name="{name}" aria-controls="panel-{name}">{escape(title)}</button>'
        for name, (title, _) in named.items()
    )
    panels = "\n".join(
        f'<section role="tabpanel" id="panel-{name}" aria-labelledby="tab-{name}" hidden>{html}</section>'
        for name, (_, html) in named.items()
    )
    opening = " · ".join(f"{escape(name)} {escape(value)}" for name, value in findings.facts.items())
    style, script = (Path(__file__).with_name(f"page.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Evaluation</title><style>{style}</style></head><body>
<h1>{metrics["bits_per_byte"]:.3f} bits per byte</h1>
<p>On test text that no stage trained on: 95% interval {metrics["bits_per_byte_low"]:.3f} to
{metrics["bits_per_byte_high"]:.3f}, test loss {metrics["test_loss"]:.3f} nats a token, perplexity
{metrics["perplexity"]:.1f}. {opening}.</p>
<div role="tablist" aria-label="Sections">{tabs}</div>
{panels}
<script type="application/json" id="data">{_inert(page_data(folder, findings))}</script>
<script>{get_plotlyjs()}</script>
<script>{script}</script>
</body></html>
"""


def _inert(value: object) -> str:
    """JSON that no text within it can end or turn into markup."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
