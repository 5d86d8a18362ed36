"""download: what becomes a document, what the manifest says, and one line for every bad input."""

from __future__ import annotations

import ast
import gzip
import inspect
import json
import sys
import sysconfig
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stages.download import hub, python_docs
from stages.download.docstrings import docstrings_of
from stages.download.params import DownloadParams
from stages.download.restructured_text import plain
from stages.download.stage import run, within_limits
from stages.entry import Job
from stages.errors import BadInput
from stages.execution import Execution
from stages.sources import Checked, SourceFile, check_file, read_corpus, validate

LIBRARY = Path(sysconfig.get_path("stdlib"))
COMMIT = "0123456789" * 4


def download(root: Path, workers: int = 1, **params: object) -> dict:
    """Runs the stage in `root` and gives the manifest."""
    job = Job("download", root, Execution(workers=workers))
    job.prepare()
    run(job, DownloadParams(**params))  # type: ignore[arg-type]
    job.publish()
    return json.loads((root / "data/download/manifest.json").read_text())


def put(root: Path, name: str, content: str | bytes) -> Path:
    path = root / "inputs" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def texts(root: Path) -> list[str]:
    return [document.text for document in read_corpus(root)]


# Documentation of installed packages


@pytest.mark.parametrize(
    "name", ["json/decoder.py", "typing.py", "argparse.py", "enum.py", "dataclasses.py", "re/__init__.py"]
)
def test_docstrings_are_those_that_ast_finds(name: str) -> None:
    source = (LIBRARY / name).read_bytes()
    holders = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    expected = [ast.get_docstring(node) for node in ast.walk(ast.parse(source)) if isinstance(node, holders)]
    assert sorted(docstrings_of(source, name)) == sorted(filter(None, expected))


def test_a_string_that_is_no_docstring_is_not_taken() -> None:
    source = b"x = 'first constant of the module'\nclass A:\n    y = 'of the class'\ndef f():\n    return 'value'\n"
    assert list(docstrings_of(source, "x.py")) == []


def test_docstrings_come_in_source_order() -> None:
    source = b"'Module.'\ndef f():\n    'F.'\nclass A:\n    'A.'\n    def g(self):\n        'G.'\ndef h():\n    'H.'\n"
    assert list(docstrings_of(source, "x.py")) == ["Module.", "F.", "A.", "G.", "H."]


@pytest.mark.parametrize(
    ("marked", "expected"),
    [
        ("See :func:`~numpy.linalg.norm` and ``axis``.", "See norm and axis."),
        ("A :py:class:`title <a.b.C>` and `site <https://x.org>`_.", "A title and site."),
        ("Use it as follows::\n\n    f(x)", "Use it as follows:\n\n    f(x)"),
        (".. versionadded:: 1.7.0\n\nMore.", "Version added: 1.7.0\n\nMore."),
        (".. code-block:: python\n   :linenos:\n\n   f(x)", "\n   f(x)"),
        ("As in [1]_.\n\n.. [1] Knuth, 1968.\n.. _target:\n", "As in [1].\n\n[1] Knuth, 1968.\n"),
        (">>> f(1)\n... # `x`\n2", ">>> f(1)\n... # `x`\n2"),
        ("Parameters\n----------\nx : int", "Parameters\n----------\nx : int"),
    ],
)
def test_marks_of_restructured_text_go_and_code_stays(marked: str, expected: str) -> None:
    assert plain(marked) == expected


def test_python_docs_give_one_page_a_module_and_name_their_versions(tmp_path: Path) -> None:
    version = python_docs.metadata.version("joblib")
    (tmp_path / "constraints.txt").write_text(f"# the corpus\njoblib=={version}\n")
    manifest = download(tmp_path, max_documents=40)
    assert manifest["packages"] == {"python": ".".join(map(str, sys.version_info[:3])), "joblib": version}
    documents = {document.id: document for document in read_corpus(tmp_path)}
    assert manifest["documents"] == len(documents) == 40
    assert {document.source for document in documents.values()} == {"stdlib"}
    assert "Generic (shallow and deep) copying" not in documents  # ids are paths
    assert inspect.cleandoc(ast.__doc__ or "")[:60] in documents["ast.py"].text


def test_pages_are_of_modules_that_are_no_tests() -> None:
    found = python_docs.installed_packages({"joblib": python_docs.metadata.version("joblib")}, any_version=False)
    ids = [page.id for page in python_docs.find_pages(found)]
    assert "joblib/parallel.py" in ids and "joblib/METADATA" in ids and "json/decoder.py" in ids
    assert not [name for name in ids if "/test/" in name or "/tests/" in name]
    assert not [name for name in ids if "site-packages" in name]


def test_python_docs_are_the_same_bytes_with_any_number_of_workers(tmp_path: Path) -> None:
    pages = python_docs.find_pages({})[:150]
    assert list(python_docs.documents(pages, 1)) == list(python_docs.documents(pages, 2))


def test_a_version_other_than_the_pin_is_refused_or_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    installed = python_docs.metadata.version("joblib")
    (tmp_path / "constraints.txt").write_text("joblib==0.0.1\n")
    with pytest.raises(BadInput, match=rf"joblib {installed} is installed, 0.0.1 is pinned; run `make setup`"):
        download(tmp_path)
    assert download(tmp_path, any_version=True, max_documents=1)["packages"]["joblib"] == installed
    assert "warning: joblib" in capsys.readouterr().out


def test_a_line_that_is_no_pin_is_named(tmp_path: Path) -> None:
    (tmp_path / "constraints.txt").write_text("joblib>=1\n")
    with pytest.raises(BadInput, match=r"constraints.txt:1: 'joblib>=1' is not a pin"):
        download(tmp_path)


# Files


def test_every_format_gives_its_texts(tmp_path: Path) -> None:
    row = json.dumps({"text": "of json lines é", "n": 1}) + "\n"
    table = pa.table({"text": ["of parquet", None], "n": [1, 2]})
    put(tmp_path, "a.txt", b"\xef\xbb\xbfof text")
    put(tmp_path, "b.md.zst", zstandard.compress(b"of ") + zstandard.compress(b"markdown"))
    put(tmp_path, "c.jsonl.gz", gzip.compress((row * 2 + "\n" + row).encode()))
    put(tmp_path, "d.json", '[{"text": "of json"}, {"text": ""}]')
    put(tmp_path, "e.csv", 'n,text\n1,"of csv,\nin two lines"\n')
    pq.write_table(table, put(tmp_path, "f.parquet", ""))
    with pa.ipc.new_file(put(tmp_path, "g.arrow", ""), table.schema) as writer:
        writer.write_table(table)
    with pa.ipc.new_stream(put(tmp_path, "h.arrow", ""), table.schema) as writer:
        writer.write_table(table)
    manifest = download(tmp_path, source="files")
    lines = ["of json lines é"] * 3
    assert texts(tmp_path) == (
        ["of text", "of markdown", *lines, "of json", "", "of csv,\nin two lines"] + ["of parquet", ""] * 3
    )
    assert manifest["documents"] == 14
    assert manifest["bytes"] == sum(len(text.encode()) for text in texts(tmp_path))
    assert [shard["file"] for shard in manifest["shards"]][:2] == ["inputs/a.txt", "inputs/b.md.zst"]
    assert not list((tmp_path / "data/download/documents").iterdir())


def test_ids_and_sources_tell_where_a_document_comes_from(tmp_path: Path) -> None:
    put(tmp_path, "letter.html", "<p>Hello")
    put(tmp_path, "books.jsonl", '{"text": "a"}\n\n{"text": "b"}\n')
    put(tmp_path, "news/2024/x.txt", "n")
    put(tmp_path, "README.md", "not a document")
    put(tmp_path, "news/.hidden.txt", "not a document")
    put(tmp_path, "news/picture.png", "not a document")
    download(tmp_path, source="files")
    found = [(document.id, document.source, document.is_html) for document in read_corpus(tmp_path)]
    assert found == [
        ("books.jsonl:1", "books", False),
        ("books.jsonl:3", "books", False),
        ("letter.html", "files", True),
        ("news/2024/x.txt", "news", False),
    ]


def test_include_chooses_and_a_single_file_is_enough(tmp_path: Path) -> None:
    put(tmp_path, "a.txt", "a")
    put(tmp_path, "deep/b.md", "b")
    download(tmp_path, source="files", include="**/*.md")
    assert texts(tmp_path) == ["b"]
    download(tmp_path, source="files", inputs="inputs/a.txt")
    assert texts(tmp_path) == ["a"]


@pytest.mark.parametrize("workers", [1, 2])
def test_limits_end_within_a_file(tmp_path: Path, workers: int) -> None:
    rows = "".join(json.dumps({"text": "x" * 10}) + "\n" for _ in range(3))
    for name in ("a", "b", "c"):
        put(tmp_path, f"{name}.jsonl", rows)
    manifest = download(tmp_path, workers, source="files", max_documents=5)
    assert [shard["rows"] for shard in manifest["shards"]] == [3, 2]
    assert len(texts(tmp_path)) == 5
    assert download(tmp_path, workers, source="files", max_bytes=69)["bytes"] == 60


def test_limits_of_rows() -> None:
    rows = [{"text": "é" * 5}] * 4
    assert len(list(within_limits(rows, DownloadParams()))) == 4
    assert len(list(within_limits(rows, DownloadParams(max_documents=3)))) == 3
    assert len(list(within_limits(rows, DownloadParams(max_bytes=29)))) == 2


def test_a_file_that_changed_after_download_is_noticed(tmp_path: Path) -> None:
    path = put(tmp_path, "a.txt", "one")
    download(tmp_path, source="files")
    path.write_text("two")
    with pytest.raises(BadInput, match=r"inputs/a.txt: changed .* run `dvc repro`"):
        texts(tmp_path)
    path.unlink()
    with pytest.raises(BadInput, match=r"inputs/a.txt: removed"):
        texts(tmp_path)


BAD_FILES = {
    "cut.jsonl.gz": (gzip.compress(b'{"text": "a"}\n' * 5000)[:-40], r"truncated or damaged gzip after \d+ bytes"),
    "no.txt.gz": (b"plain", "truncated or damaged gzip after 0 bytes"),
    "cut.txt.zst": (zstandard.compress(bytes(range(1, 120)) * 50)[:-8], "truncated or damaged zstd"),
    "nul.txt": (b"\0" * 100, "byte 0 is NUL; this is not a text file"),
    "latin.txt": ("caf\u00e9".encode("latin-1"), r"byte 3 \(0xe9\) is not UTF-8; convert the file"),
    "latin.jsonl": (b'{"text": "a"}\n{"text": "\xe9"}\n', r"row 2: byte 24 \(0xe9\) is not UTF-8"),
    "half.jsonl": (b'{"text": "a"}\n{"text": ', "row 2: not valid JSON"),
    "deep.json": (b"[" * 100_000, "not valid JSON"),
    "other.jsonl": (b'{"content": "a"}\n', "row 1: no column 'text'; it has content; set download.text_column"),
    "number.jsonl": (b'{"text": "a"}\n{"text": 3}\n', "row 2: 'text' must be a string, not int"),
    "list.jsonl": (b'["text"]\n', "row 1: must be an object"),
    "surrogate.jsonl": (b'{"text": "a\\ud800"}\n', "row 1: character 1 of 'text' is a lone surrogate"),
    "other.csv": (b"a,b\n1,2\n", "row 1: no column 'text'"),
    "ragged.csv": (b"text,b\nx,1\ny\n", r"row 2 \(line 3\): its fields do not match the header"),
    "no.parquet": (b"PAR1 and nothing", "truncated or not Parquet"),
    "no.arrow": (b"ARROW1 and nothing", "truncated or not Arrow"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_gets_one_line_with_its_place(tmp_path: Path, name: str) -> None:
    content, message = BAD_FILES[name]
    put(tmp_path, name, content)
    with pytest.raises(BadInput, match=message) as caught:
        download(tmp_path, source="files")
    assert f"inputs/{name}: " in str(caught.value) and "\n" not in str(caught.value)


def test_parquet_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    path = put(tmp_path, "a.parquet", "")
    pq.write_table(pa.table({"content": ["a"]}), path)
    with pytest.raises(BadInput, match=r"a.parquet: no column 'text'; it has content"):
        download(tmp_path, source="files")
    pq.write_table(pa.table({"text": [1]}), path)
    with pytest.raises(BadInput, match="column 'text' is of type int64; it must be a string"):
        download(tmp_path, source="files")
    pq.write_table(pa.table({"text": ["a" * 1000] * 1000}), path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(BadInput, match="truncated or not Parquet"):
        download(tmp_path, source="files")


def test_a_column_of_bytes_that_are_not_text_is_refused(tmp_path: Path) -> None:
    broken = pa.StringArray.from_buffers(2, pa.array([0, 1, 2], pa.int32()).buffers()[1], pa.py_buffer(b"a\xff"))
    pq.write_table(pa.table({"text": broken}), put(tmp_path, "a.parquet", ""))
    with pytest.raises(BadInput, match="row 2: byte 0 of 'text' is not UTF-8"):
        download(tmp_path, source="files")


def test_an_empty_corpus_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="inputs: not found"):
        download(tmp_path, source="files")
    put(tmp_path, "README.md", "not a document")
    with pytest.raises(BadInput, match=r"inputs: no document here .* or set download.source: python_docs"):
        download(tmp_path, source="files")
    put(tmp_path, "a.jsonl", "")
    with pytest.raises(BadInput, match="gave no document"):
        download(tmp_path, source="files")


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv", "a.jsonl.gz"])
def test_a_document_beyond_the_limit_is_refused_before_it_is_read_whole(tmp_path: Path, name: str) -> None:
    content = {"a.txt": "x", "a.csv": "text\nx"}.get(name, '{"text": "').encode() + b"x" * 3_000_000
    put(tmp_path, name, gzip.compress(content) if name.endswith("gz") else content)
    with pytest.raises(BadInput, match=r"a document of more than 1 MB; cut it .* or raise download.max_document_mb"):
        download(tmp_path, source="files", max_document_mb=1)


def test_validate_tells_all_that_is_wrong_and_reads_on(tmp_path: Path) -> None:
    put(tmp_path, "a.jsonl", b'{"text": "a"}\n{"text": 3}\n{"text": "\xe9"}\nnothing\n{"text": "b"}\n')
    put(tmp_path, "b.txt", b"\0")
    put(tmp_path, "c.txt", "good")
    checked = {one.name: one for one in validate(tmp_path / "inputs", "**/*", "text")}
    assert [line.split("a.jsonl: ")[1].split(" is ")[0].split(" must")[0] for line in checked["a.jsonl"].problems] == [
        "row 2: 'text'",
        "row 3: byte 36 (0xe9)",
        "row 4: not valid JSON: Expecting value: line 1 column 1 (char 0)",
    ]
    assert (checked["a.jsonl"].documents, checked["c.txt"]) == (2, Checked("c.txt", 1, 4, []))
    assert "NUL" in checked["b.txt"].problems[0]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(["a.jsonl", "a.json", "a.csv", "a.txt", "a.jsonl.gz", "a.txt.zst", "a.parquet", "a.arrow"]),
    st.data(),
)
def test_damaged_files_are_read_or_refused_in_one_line(tmp_path: Path, name: str, data: st.DataObject) -> None:
    table = pa.table({"text": ["some text", "more \u00e9"]})
    buffer = pa.BufferOutputStream()
    if name.endswith("parquet"):
        pq.write_table(table, buffer)
    else:
        with pa.ipc.new_file(buffer, table.schema) as writer:
            writer.write_table(table)
    rows = "".join(json.dumps({"text": text}) + "\n" for text in ("some text", "more \u00e9", "\u65e5")).encode()
    content = bytearray(
        {".gz": gzip.compress(rows), ".zst": zstandard.compress(rows), ".csv": b"text,n\na,1\n\xc3\xa9,2\n"}.get(
            Path(name).suffix, buffer.getvalue().to_pybytes() if name.endswith(("parquet", "arrow")) else rows
        )
    )
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    del content[data.draw(st.integers(0, len(content))) :]
    one = check_file(SourceFile(put(tmp_path, name, bytes(content)), name), "text")
    assert all("\n" not in problem and name in problem for problem in one.problems)


@pytest.mark.parametrize("values", [{"inputs": "in/*.txt"}, {"include": "/x"}, {"text_column": ""}, {"max_bytes": -1}])
def test_impossible_params_are_refused(values: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(values))):
        DownloadParams(**values)


# The hub: what `datasets` streams is tried on a local folder, which goes the same way through load_dataset


def hub_params(**values: object) -> DownloadParams:
    return DownloadParams(source="huggingface", dataset_config="", **values)  # type: ignore[arg-type]


def test_a_dataset_is_streamed_in_its_order(tmp_path: Path) -> None:
    for number in range(2):
        pq.write_table(pa.table({"text": [f"{number}a", None, f"{number}c"]}), tmp_path / f"train-{number}.parquet")
    found = list(hub.documents(hub_params(dataset=str(tmp_path), revision=COMMIT)))
    assert [row["text"] for row in found] == ["0a", "", "0c", "1a", "", "1c"]
    assert found[3]["id"] == f"{tmp_path}/train:4"
    with pytest.raises(BadInput, match="no column 'content'; it has text"):
        list(hub.documents(hub_params(dataset=str(tmp_path), revision=COMMIT, text_column="content")))


class Hub(BaseHTTPRequestHandler):
    """Answers as the hub does when it is asked for a branch of a dataset."""

    def do_GET(self) -> None:
        body = json.dumps({"_id": "1", "id": "owner/name", "sha": COMMIT}).encode()
        known = self.path.startswith("/api/datasets/owner/name/revision/main")
        self.send_response(200 if known else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Says nothing."""


def test_a_branch_is_refused_with_the_commit_to_paste(monkeypatch: pytest.MonkeyPatch) -> None:
    with HTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        with pytest.raises(BadInput, match=rf"'main' is not a commit of 40 digits .* set download.revision: {COMMIT}"):
            hub.check(hub_params(dataset="owner/name"))
        server.shutdown()


def test_a_branch_is_refused_with_the_way_to_its_commit_when_the_hub_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(BadInput, match=r"copy the commit from https://huggingface.co/datasets/.*/commits"):
        hub.check(hub_params(revision="v1.0"))
    hub.check(hub_params(revision=COMMIT))


def test_a_local_folder_is_no_dataset_of_the_hub(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"for files of your own set download.source: files"):
        hub.check(hub_params(dataset=str(tmp_path), revision=COMMIT))
