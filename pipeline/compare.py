"""The command `millrace compare A B`: what two runs were given and what came out, side by side.

A and B are commits, branches, tags, experiments, or `workspace`. Nothing is checked out: params come from git,
metrics, curves and samples from the DVC cache (pipeline/revisions.py). Shown is what differs: params, metrics,
the code by function, and the packages that the download stage recorded; then the curves and the samples.

Are two losses on the same text different by more than chance? Both models have read the same test documents (equal
eval_sha256, else nothing is said), so the difference is taken document by document, with the interval by which a model
becomes champion (stages/export/promotion.py):

    -0.0081 bits per byte, 95% interval -0.0112 to -0.0049, lower on 24 of 29 documents

An interval without 0 says that these two models differ on text like this, not that two others of other seeds would:
for that, train both with several (`millrace ablate`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from pipeline.revisions import Revision

ABSENT = "not there"
HASH = re.compile("[0-9a-f]{40,}")


@click.command()
@click.argument("one", metavar="A")
@click.argument("other", metavar="B", default="workspace")
@click.option("--json", "as_json", is_flag=True, help="One JSON object: params, metrics, code, versions, samples.")
@click.option("--html", type=click.Path(path_type=Path, dir_okay=False), help="Write a page with curves and samples.")
def compare(one: str, other: str, as_json: bool, html: Path | None) -> None:
    """Sets two runs side by side: what was different, and what came out.

    A and B are commits, branches, tags, experiments, or `workspace`, which is meant where there is no B.

    \b
      millrace compare main                                  the last commit and the workspace
      millrace compare post-norm-true-s0-3f2a91c main --html compare.html
    """
    from pipeline.revisions import Revision
    from stages.root import find_root

    root = find_root()
    revisions = Revision.of(root, one), Revision.of(root, other)
    for revision in revisions:
        revision.need_run()
    found = comparison(*revisions)
    if html:
        from pipeline.report import write_for_person

        write_for_person(html, page(*revisions, found).html())
    if as_json:
        click.echo(json.dumps(found, indent=2, ensure_ascii=False, default=str))
    elif not html:
        click.echo(page(*revisions, found).markdown().rstrip())


def measured_on(metrics: Mapping[str, Any]) -> tuple[str, str]:
    """The test text and the precision of its losses; those of before there was a choice are in fp32."""
    return str(metrics.get("evaluate.eval_sha256") or ""), str(metrics.get("evaluate.eval_precision") or "fp32")


def comparison(one: Revision, other: Revision) -> dict[str, Any]:
    """What differs, as plain values: (of A, of B) by name."""
    measured = [measured_on(revision.metrics()) for revision in (one, other)]
    return {
        "params": differences(one.flat_params(), other.flat_params()),
        "metrics": differences(one.metrics(), other.metrics()),
        "same_test_text": measured[0] == measured[1],
        "difference": difference(one, other) if measured[0] == measured[1] else None,
        "code": code_differences(one, other),
        "versions": differences(versions(one), versions(other)),
        "samples": list(samples(one, other)),
    }


def difference(one: Revision, other: Revision) -> dict[str, float] | None:
    """Bits per byte of B less those of A on the same documents; None where either's table of them is not at hand."""
    pairs = documents(one, other)
    if len(pairs) < 2:
        return None
    import numpy as np

    from stages.export.promotion import student_interval

    n_bytes, a, b = np.array(pairs, dtype=float).T
    weights = n_bytes / n_bytes.sum()
    low, high = student_interval(b - a, weights)
    change = float(weights @ (b - a))
    return {
        "bits_per_byte": change,
        "low": low,
        "high": high,
        "share": change / float(weights @ a),
        "lower": int((b < a).sum()),
        "documents": len(pairs),
    }


def documents(one: Revision, other: Revision) -> list[tuple[int, float, float]]:
    """Bytes, bits per byte of A and of B of each test document."""
    tables = [revision.rows("data/evaluate/plots/documents.csv") for revision in (one, other)]
    if [(row["document"], row["bytes"]) for row in tables[0]] != [(row["document"], row["bytes"]) for row in tables[1]]:
        return []
    both = zip(*tables, strict=True)
    return [(int(a["bytes"]), float(a["bits_per_byte"]), float(b["bits_per_byte"])) for a, b in both]


def in_words(found: Mapping[str, float]) -> str:
    """The difference in a sentence."""
    verdict = "chance may explain it" if found["low"] <= 0 <= found["high"] else "more than chance explains"
    return (
        f"{found['bits_per_byte']:+.4f} bits per byte ({found['share']:+.2%}), 95% interval {found['low']:+.4f} to "
        f"{found['high']:+.4f}, lower on {found['lower']} of the {found['documents']} test documents: {verdict}."
    )


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    names = dict.fromkeys([*one, *other])
    pairs = {name: (one.get(name, ABSENT), other.get(name, ABSENT)) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def code_differences(one: Revision, other: Revision) -> list[str]:
    """The functions that differ, over the fingerprints of all stages; those of B are the new ones."""
    from pipeline.explain import changed_code

    modules: list[dict] = [{}, {}]
    for revision, found in zip((one, other), modules, strict=True):
        for path in revision.locked.files("code", "outs"):
            found |= (revision.json(path) or {}).get("modules", {})
    return [str(reason).removeprefix("code ") for reason in changed_code(*modules)] if all(modules) else []


def versions(revision: Revision) -> dict[str, Any]:
    """Versions of libraries: the pins in git, those that the training ran with, as MLflow has them, and the packages
    whose text was read, as download recorded them."""
    manifest = revision.json("data/download/manifest.json") or {}
    packages = manifest.get("packages") or {}
    read = {f"text of {name}": version for name, version in packages.items()} if isinstance(packages, dict) else {}
    pins = revision.text("constraints.txt") or ""
    lines = (line.partition("#")[0].strip().partition("==") for line in pins.splitlines())
    return {name: version for name, equals, version in lines if equals} | trained_with(revision) | read


def trained_with(revision: Revision) -> dict[str, str]:
    """The packages of the training, from its MLflow run in the database of this repository, where there is one."""
    from pipeline.revisions import tags_of_run
    from stages.provenance import PACKAGES

    state = revision.json("data/train/last/state.json") or {}
    tags = tags_of_run(revision.root, str(state.get("run")))
    return {f"{name} of the training": tags[name] for name in ("python", *PACKAGES) if name in tags}


def samples(one: Revision, other: Revision) -> Iterator[dict[str, str]]:
    """The continuations of equal prompts."""
    texts = [
        {sample["prompt"]: sample["continuation"] for sample in revision.json("data/evaluate/samples.json") or []}
        for revision in (one, other)
    ]
    for prompt in dict.fromkeys([*texts[0], *texts[1]]):
        yield {"prompt": prompt, "a": texts[0].get(prompt, ABSENT), "b": texts[1].get(prompt, ABSENT)}


def page(one: Revision, other: Revision, found: Mapping[str, Any]) -> Any:
    """The comparison for people."""
    from pipeline.page import Curve, Page

    page = Page(f"{one.name} and {other.name}")
    for title, key in (("Params", "params"), ("Metrics", "metrics"), ("Versions", "versions")):
        page.heading(title)
        if key == "metrics" and not found["same_test_text"]:
            page.text(
                "Measured on other test text or in another precision (eval_sha256, eval_precision): their bits per "
                "byte cannot be compared.",
                True,
            )
        if key == "metrics" and found["difference"]:
            page.text(f"{other.name} less {one.name}: {in_words(found['difference'])}")
        pairs = found[key].items()
        rows = [[name, said(a), said(b), change(a, b)] for name, (a, b) in pairs]
        page.table([["", one.name, other.name, "change"], *rows]) if rows else page.text("nothing differs")
    page.heading("Code")
    page.text("; ".join(found["code"]) or "no function differs, or a fingerprint is not in the cache")
    curves = []
    for revision in (one, other):
        rows_of = revision.rows("data/train/loss.csv")
        points = [(float(row["tokens"]), float(row["loss_smooth"])) for row in rows_of if row.get("loss_smooth")]
        curves.append(Curve(revision.name, points))
    page.heading("Curves").chart("training loss, smoothed (nats a token)", "tokens", curves)
    if differing := [sample for sample in found["samples"] if sample["a"] != sample["b"]]:
        page.heading("Samples")
        page.table([["prompt", one.name, other.name], *([s["prompt"], s["a"], s["b"]] for s in differing)], True)
    return page


def said(value: Any) -> str:
    """For a table: a hash by its first digits, and empty text as what it is."""
    if isinstance(value, str) and value:
        return f"{value[:12]}.." if HASH.fullmatch(value) else value
    return f"{value:.6g}" if isinstance(value, float) else json.dumps(value)


def change(one: Any, other: Any) -> str:
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in (one, other))
    return f"{other - one:+.4g}" if numbers else ""
