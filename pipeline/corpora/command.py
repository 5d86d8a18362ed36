"""The commands `millrace data ...`: what lies in data/, and why. They read, and change nothing."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import click

from stages.errors import BadInput

BAD_INPUT = 2
PREVIEW_CHARACTERS = 600
DOCUMENT_STAGES = ("download", "clean", "dedup")
SPLITS = ("train", "validation", "test")

as_json = click.option("--json", "as_json", is_flag=True, help="JSON instead of a table, whole and for programs.")
one_split = click.option("--split", type=click.Choice(SPLITS), help="Only documents of this split (after clean).")
one_source = click.option("--source", metavar="NAME", help="Only documents of this source, as `stats` lists them.")


@click.group()
def data() -> None:
    """Looks at documents and rows: what is there, what was dropped, and why.

    \b
      millrace data validate               before a run: every bad file and row of your inputs
      millrace data preview clean -n 3     the first documents that a stage passes on
      millrace data stats                  documents, bytes and lengths by source and split
      millrace data explain ID             why is this document not in train?
      millrace data inspect train 7        row 7 as the model reads it, with its boundaries
      millrace data near "some text"       which documents are like this one?

    Every command takes --json where it prints a table.
    """


@data.command()
@click.argument("stage", type=click.Choice([*DOCUMENT_STAGES, "pack"]))
@click.option("-n", "count", default=3, show_default=True, type=click.IntRange(min=1), help="How many.")
@click.option("--skip", default=0, type=click.IntRange(min=0), help="Begin after so many.")
@click.option("--full", is_flag=True, help="Whole texts, not their beginnings.")
@one_source
@one_split
@as_json
def preview(
    stage: str, count: int, skip: int, full: bool, source: str | None, split: str | None, as_json: bool
) -> None:
    """Prints documents as a stage passes them on; of pack, rows.

    \b
      millrace data preview download
      millrace data preview clean -n 1 --skip 100 --full
      millrace data preview dedup --source numpy --split test --json
    """
    from pipeline.corpora.corpus import chosen, documents

    if stage == "pack":
        if source:
            raise BadInput("--source: rows hold documents of all sources; `millrace data preview dedup --source ..`")
        _print_rows(split or "train", range(skip, skip + count), as_json)
        return
    if stage == "download" and split:
        raise BadInput("--split: the stage clean draws the split; preview clean or dedup")
    found = list(islice(chosen(documents(_root(), stage), source, split), skip, skip + count))
    if not found:
        raise BadInput(f"no document of data/{stage} after {skip} others; `millrace data stats {stage}` counts them")
    if as_json:
        click.echo(json.dumps(found, indent=2, ensure_ascii=False))
        return
    for document in found:
        text = document["text"]
        cut = (
            ""
            if full or len(text) <= PREVIEW_CHARACTERS
            else f"\n.. {len(text) - PREVIEW_CHARACTERS:,} more characters"
        )
        about = ", ".join(filter(None, [document["source"], document.get("split"), f"{len(text.encode()):,} bytes"]))
        click.echo(click.style(f"── {document['id']} ({about})", bold=True))
        click.echo((text if full else text[:PREVIEW_CHARACTERS]) + cut + "\n")


@data.command()
@click.argument("path", required=False, type=click.Path(path_type=Path))
@click.option("--column", metavar="NAME", help="The column of text; default: download.text_column.")
@as_json
def validate(path: Path | None, column: str | None, as_json: bool) -> None:
    """Reads a corpus to its end and names every file and row that cannot be used.

    PATH is a file or a folder; default: download.inputs. The exit code is 2 where something is wrong.

    \b
      millrace data validate
      millrace data validate ~/corpora/news --column content
    """
    from stages.download.params import DownloadParams
    from stages.execution import Execution
    from stages.inputs import problems
    from stages.params import ParamsFile
    from stages.sources import KINDS, by_ending, files_below
    from stages.sources import validate as checked
    from stages.wording import counted

    root = _root()
    params = ParamsFile(root / "params.yaml")
    download = params.section("download", DownloadParams)
    inputs, include = path or root / download.inputs, "**/*" if path else download.include
    no_files = list(problems(inputs)) if inputs.is_dir() else []
    for problem in [] if as_json else no_files:
        click.echo(problem, err=True)
    files, others = files_below(inputs, include)
    if not files and not no_files:
        left_out = f", only {by_ending(others)}; it reads {', '.join(KINDS)}" if others else ""
        raise BadInput(f"{path or download.inputs}: no file of documents here{left_out}")
    n_workers = params.section("execution", Execution).n_workers()
    limit = round(download.max_document_mb * 1e6)
    found = []
    for file in checked(inputs, include, column or download.text_column, limit, n_workers):
        found.append(file)
        for problem in [] if as_json else file.problems:
            click.echo(problem, err=True)
    bad = len(no_files) + sum(bool(file.problems) for file in found)
    if as_json:
        told = {"files": [file._asdict() for file in found], "left_out": others, "no_files": no_files}
        click.echo(json.dumps(told, indent=2))
    else:
        parts = [
            f"{counted(len(found), 'file')}, {counted(sum(file.documents for file in found), 'document')}, "
            f"{counted(sum(file.bytes for file in found), 'byte')} of text",
            f"{counted(bad, 'file')} cannot be used" if bad else "all can be used",
        ]
        if nothing_in := [file.name for file in found if not file.bytes and not file.problems]:
            parts.append(f"{counted(len(nothing_in), 'file')} without any text: {', '.join(nothing_in)}")
        if empty := sum(file.empty for file in found):
            parts.append(f"{counted(empty, 'document')} without text, which clean will drop")
        if with_nul := sum(file.with_nul for file in found):
            parts.append(f"{counted(with_nul, 'document')} with NUL characters, which clean will take out")
        if others:
            parts.append(f"{counted(len(others), 'file')} of other kinds left out: {by_ending(others)}")
        click.echo("; ".join(parts))
    if bad:
        sys.exit(BAD_INPUT)


@data.command()
@click.argument("stage", required=False, type=click.Choice([*DOCUMENT_STAGES, "pack"]))
@as_json
def stats(stage: str | None, as_json: bool) -> None:
    """Counts documents, bytes, tokens and lengths, by source and split.

    Without a stage: every stage that has run. Lengths are in bytes of UTF-8; of pack, tokens count
    end-of-text, and documents and tokens count repeats (pack.mixture).

    \b
      millrace data stats clean
      millrace data stats --json | jq '.pack[] | select(.source == "wiki").share'
    """
    from pipeline.corpora.corpus import STAGES, has_run
    from pipeline.corpora.corpus import stats as counted

    root = _root()
    wanted = [stage] if stage else [name for name in STAGES if has_run(root, name)]
    if not wanted:
        raise BadInput("no data stage has run here yet; run `millrace run download`")
    found = {name: counted(root, name) for name in wanted}
    if as_json:
        click.echo(json.dumps(found, indent=2, ensure_ascii=False))
        return
    for name, rows in found.items():
        click.echo(click.style(name, bold=True))
        _print_table(rows)


@data.command()
@click.argument("name", metavar="ID")
@as_json
def explain(name: str, as_json: bool) -> None:
    """Tells what became of a document, and why: rule, value, threshold, kept document, Jaccard.

    \b
      millrace data explain news.jsonl:17
      clean  kept, of source news
      split  train
      dedup  removed: a near-duplicate of news.jsonl:3 (Jaccard 0.913)

    An id that does not exist gets the nearest ones. `millrace data preview` shows ids.
    """
    from pipeline.corpora.fate import fate, told

    facts = fate(_root(), name)
    if as_json:
        click.echo(json.dumps(facts, indent=2, ensure_ascii=False))
        return
    for stage, sentence in told(facts):
        click.echo(f"{stage:6} {sentence}")


@data.command()
@click.argument("split", default="train", type=click.Choice(SPLITS))
@click.argument("row", default=0, type=int)
@as_json
def inspect(split: str, row: int, as_json: bool) -> None:
    """Prints a packed row, decoded: which slots hold which document, from where, and what comes after.

    \b
      millrace data inspect                row 0 of train
      millrace data inspect validation 12
      millrace data inspect --json | jq '.segments[0].input_ids'
    """
    _print_rows(split, range(row, row + 1), as_json)


@data.command()
@click.argument("text", metavar="TEXT|@FILE")
@click.option("-n", "count", default=10, show_default=True, type=click.IntRange(min=1), help="How many at most.")
@click.option(
    "--least", default=0.1, show_default=True, type=click.FloatRange(0, 1), help="Smallest estimate looked at."
)
@as_json
def near(text: str, count: int, least: float, as_json: bool) -> None:
    """Finds the clean documents most like a text, by the signatures of dedup, compared exactly.

    Jaccard is that of the sets of words in a row (dedup.ngram of them), 1 for the same words. Signatures that
    dedup has made are read; without them they are made first.

    \b
      millrace data near "The quick brown fox jumps over the lazy dog."
      millrace data near @article.txt -n 3 --json
    """
    from pipeline.corpora.corpus import need
    from stages.dedup.near import near as neighbours

    need(_root(), "clean")
    with contextlib.redirect_stdout(sys.stderr):  # progress, where signatures have to be made
        found = neighbours(_root(), _given(text), count, least)
    if as_json:
        click.echo(json.dumps([neighbour._asdict() for neighbour in found], indent=2, ensure_ascii=False))
    elif found:
        _print_table([{"id": each.id, "jaccard": each.jaccard, "estimated": each.estimated} for each in found])
    else:
        words = len(_given(text).split())
        click.echo(
            f"no document is like it: whole documents are compared, by words in a row (dedup.ngram of them), and this "
            f"text has {words:,}; give as much text as a document has, such as @FILE"
        )


def _given(text: str) -> str:
    """The text, or what the file behind @ holds."""
    if not text.startswith("@"):
        return text
    try:
        return Path(text[1:]).read_text(encoding="utf-8")
    except OSError as error:
        raise BadInput(f"{text[1:]}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise BadInput(f"{text[1:]}: byte {error.start} is not UTF-8") from None


def _print_rows(split: str, rows: Iterable[int], as_json: bool) -> None:
    from pipeline.corpora.packed import row_facts, shown

    found = [row_facts(_root(), split, row) for row in rows]
    if as_json:
        click.echo(json.dumps(found[0] if len(found) == 1 else found, indent=2, ensure_ascii=False))
        return
    for facts in found:
        click.echo("\n".join(shown(facts)) + "\n")


def _print_table(rows: list[dict[str, Any]]) -> None:
    """Columns as wide as their widest value, numbers to the right."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[_cell(row.get(name, "")) for name in names] for row in rows]
    widths = [max(len(name), *(len(line[at]) for line in cells)) for at, name in enumerate(names)]
    click.echo("  ".join(f"{name:{width}}" for name, width in zip(names, widths, strict=True)).rstrip())
    for row, line in zip(rows, cells, strict=True):
        sides = ["<" if isinstance(row.get(name, ""), str) else ">" for name in names]
        click.echo(
            "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(line, sides, widths, strict=True)).rstrip()
        )
    click.echo()


def _cell(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}" if isinstance(value, float) else str(value)


def _root() -> Path:
    from stages.root import find_root

    return find_root()
