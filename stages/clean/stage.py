"""Writes clean text once, each document with its split, and a verdict on every document.

For each document: HTML becomes text, text is normalised (`text.py`), rules decide (`rules.py`). The
split is drawn from the raw text, before any of that, so no rule can move a document from test to
train. Example: of 3 documents one is 5 words long; documents/ has 2 rows, verdicts/ has 3, the short
one with kept=false, rule=min_words, value=5, threshold=20.

A piece of the corpus (pieces.py) is a task: it is done once and kept by the hash of its files and of the
params, so a changed file redoes its piece, and the shards published are links to what the pieces made, in
their order: same bytes for any number of workers. Duplicates are the next stage's work.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from stages.clean.params import CleanParams
from stages.clean.piece import LANGUAGE, clean_piece, metric_names, prepare_kernels
from stages.clean.rules import EMPTY, RULES
from stages.edited import Stamp
from stages.entry import Job
from stages.errors import BadInput
from stages.files import write_json
from stages.first_compile import tell_first_compile
from stages.formats import parquet_cuts
from stages.pieces import PIECE_BYTES, groups, ranges
from stages.progress import say
from stages.sources import Part, SourceFile, check_unchanged, read_manifest
from stages.splits import SplitParams
from stages.store import link_file
from stages.tasks import Task, results
from stages.wording import counted

SAMPLES_OF_RULE = 5
FEW_RESERVED = 10  # documents; the interval of a figure is one over documents


def run(job: Job, clean: CleanParams, split: SplitParams) -> None:
    """Writes documents/*.parquet, verdicts/*.parquet, samples.json and metrics.json.

    Raises:
        BadInput: a document that cannot be read, or nothing left in a split.
        Failed: a file of the user's was edited while it was read.
    """
    manifest = read_manifest(job.root)
    stamps = check_unchanged(job.root, manifest, job.execution.n_workers())
    tell_first_compile(job.stage, Path(__file__).parent)
    prepare_kernels(clean)
    text_column = manifest.get("text_column", "text")
    function = partial(clean_piece, text_column=text_column, clean=clean, split=split)
    counts: Counter[str] = Counter(dict.fromkeys(metric_names(), 0))
    samples: dict[str, list[dict[str, Any]]] = {}
    numbers = {"documents": 0, "verdicts": 0}
    for name in numbers:
        (job.staging / name).mkdir()
    planned = list(tasks(job, manifest, text_column, clean, split, stamps))
    for folder in results(job, "pieces", function, planned, "pieces"):
        for name in numbers:
            for path in sorted(folder.glob(f"{name}-*.parquet")):
                link_file(path, job.staging / name / f"{numbers[name]:05d}.parquet")
                numbers[name] += 1
        told = json.loads((folder / "told.json").read_text(encoding="utf-8"))
        counts.update(told["counts"])
        for rule, found in told["samples"].items():
            samples[rule] = sorted([*samples.get(rule, []), *found], key=lambda one: one["order"])[:SAMPLES_OF_RULE]
    check_counts(counts, split)
    for warning in warnings_of(counts, split):
        say(f"clean: warning: {warning}")
    write_json(job.staging / "samples.json", samples)
    write_json(job.staging / "metrics.json", dict(counts))
    dropped = {rule: counts[f"dropped.{rule}"] for rule in (*RULES, LANGUAGE) if counts[f"dropped.{rule}"]}
    nul = counts["documents_with_nul"]
    removed = f"; took NUL characters out of {counted(nul, 'document')}" if nul else ""
    kept = f"kept {counts['documents_out']:,} of {counted(counts['documents_in'], 'document')}"
    say(f"clean: {kept}; dropped {dropped or 'none'}{removed}")


def tasks(
    job: Job,
    manifest: dict[str, Any],
    text_column: str,
    clean: CleanParams,
    split: SplitParams,
    stamps: Mapping[Path, Stamp | None],
) -> Iterator[Task]:
    """One task for each piece of the corpus."""
    sha256s = {job.root / shard["file"]: shard["sha256"] for shard in manifest["shards"]}
    sized = (
        (part, f"{part.path.name}/{part.name}/{part.begin}", size)
        for part, size in parts(job.root, manifest, text_column)
    )
    for piece in groups(sized):
        described = [[part.name, sha256s[part.path], part.begin, part.end, part.before, part.rows] for part in piece]
        stamped = [part._replace(stamp=stamps[part.path]) for part in piece]
        yield Task(job.key("piece", described, text_column, clean, split), stamped)


def parts(root: Path, manifest: dict[str, Any], text_column: str) -> Iterator[tuple[Part, int]]:
    """The parts of all files in order, each with about as many bytes as it has text."""
    for shard in manifest["shards"]:
        path, name = root / shard["file"], shard.get("name", "")
        size = path.stat().st_size
        cuts, end = shard.get("cuts", []), size
        if not shard.get("limited") and (not name or SourceFile(path, name).kind == "parquet"):
            cuts, end = parquet_cuts(path, text_column if name else "text", PIECE_BYTES)
        if not cuts:
            yield Part(path, name, rows=shard["rows"]), shard["bytes"]
            continue
        for begin, following, before in ranges(cuts, end):
            yield Part(path, name, begin, following, before), shard["bytes"] * (following - begin) // end


def check_counts(counts: Counter[str], split: SplitParams) -> None:
    """Refuses a corpus that later stages could not train on or measure with.

    Raises:
        BadInput: names the param to change.
    """
    kept = counts["documents_out"]
    if not kept:
        worst = max((*RULES, LANGUAGE), key=lambda rule: counts[f"dropped.{rule}"])
        dropped = f"{counts[f'dropped.{worst}']} of {counts['documents_in']} were dropped by {worst}"
        mend = "give documents with text" if worst == EMPTY else f"change clean.{worst} (null switches it off)"
        raise BadInput(f"no document is left after cleaning: {dropped}; {mend}")
    for name, fraction in (("validation", split.validation), ("test", split.test)):
        if not counts[f"documents_{name}"]:
            raise BadInput(
                f"split.{name} {fraction:g} of {counted(kept, 'document')} reserved none for {name}; raise "
                f"split.{name}, for example to {min(0.2, max(2 * fraction, 10 / kept)):.2g}, or take more documents"
            )
    if kept == counts["documents_validation"] + counts["documents_test"]:
        raise BadInput(f"every one of {counted(kept, 'document')} is reserved, none is left to train on; take more")


def warnings_of(counts: Counter[str], split: SplitParams) -> Iterator[str]:
    """A line for each reserved split whose figures would say little."""
    for name, fraction in (("validation", split.validation), ("test", split.test)):
        n_documents = counts[f"documents_{name}"]
        if n_documents >= FEW_RESERVED:
            continue
        enough = min(0.2, 2 * FEW_RESERVED / counts["documents_out"])
        mend = f"raise split.{name}, for example to {enough:.2g}, or take" if fraction < enough else "take"
        yield (
            f"{counted(n_documents, 'document')} of {counts['documents_out']:,} reserved for {name}, figures on so few "
            f"say little; {mend} more documents"
        )
