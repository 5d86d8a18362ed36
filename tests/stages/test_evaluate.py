"""The stage as a whole, on a small workspace: what it writes, that it is right, and equal for equal inputs."""

import dataclasses
import hashlib
import json
import math
import sys
from html.parser import HTMLParser
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

import model
from model.config import ModelConfig
from model.decoder import Decoder
from stages.checkpoint import save_checkpoint
from stages.entry import Job, plain
from stages.errors import BadInput
from stages.evaluate.params import EvaluateParams, TextFile
from stages.evaluate.stage import comparison, run
from stages.execution import Execution
from stages.files import file_sha256
from stages.params import ParamsFile
from stages.tokens import INDEX_VERSION, row_schema
from stages.train.probes import HEADER
from stages.vocabulary import SPECIAL_TOKENS

T = 16
TRAIN = [f"def add_{i}(x, y):\n    '''Returns the sum of x and y.'''\n    return x + y + {i}\n" for i in range(40)]
TEST = ["Returns the sum of <x> & y — été.", "def mul(x, y):\n    return x * y\n", "Returns nothing."]
PARAMS = EvaluateParams(
    bootstrap_samples=100, max_analysis_tokens=64, prompts=["Returns <b>"], sample_tokens=8, generated_texts=2,
    embedding_tokens=40,
)  # fmt: skip


def write_tokenizer(path: Path) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=[*SPECIAL_TOKENS], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(TRAIN, trainer)
    path.parent.mkdir(parents=True)
    tokenizer.save(str(path))
    return tokenizer


def write_rows(folder: Path, documents: list[list[int]], vocab_size: int, tokenizer_sha256: str) -> None:
    """One piece of a document in each row."""
    folder.mkdir(parents=True)
    rows = []
    for number, document in enumerate(documents):
        inputs, labels = [0, *document], [*document, 0]
        for start in range(0, len(inputs), T):
            piece = inputs[start : start + T]
            last = labels[start + len(piece) - 1]
            row = {"input_ids": piece + [1] * (T - len(piece)), "lengths": [len(piece)], "next_ids": [last]}
            rows.append({**row, "documents": [number], "offsets": [start]})
    schema, path = row_schema(T, vocab_size), folder / "00000.arrow"
    with pa.ipc.new_file(str(path), schema) as writer:
        writer.write_table(pa.Table.from_pylist(rows, schema))
    shard = {"file": path.name, "rows": len(rows), "bytes": path.stat().st_size}
    index = {"version": INDEX_VERSION, "context_length": T, "vocab_size": vocab_size, "shards": [shard]}
    (folder / "index.json").write_text(json.dumps({**index, "tokenizer_sha256": tokenizer_sha256}))


def write_workspace(root: Path, config: ModelConfig) -> None:
    """Packed text, and a checkpoint of a model to which every token is alike."""
    path = root / "data/tokenizer/tokenizer.json"
    tokenizer = write_tokenizer(path)
    vocab_size, digest = tokenizer.get_vocab_size(), file_sha256(path)
    for split, texts in (("train", TRAIN), ("validation", TEST[:2]), ("test", TEST)):
        write_rows(root / "data/pack" / split, [e.ids for e in tokenizer.encode_batch(texts)], vocab_size, digest)
    write_metrics_of_other_stages(root / "data")
    decoder = Decoder(config, vocab_size)
    torch.nn.init.zeros_(decoder.embedding.weight)  # every token alike: the loss is ln V
    state = {"run": "0" * 16, "step": 3, "tokens": 96, "seed": 5, "rows_per_step": 20}
    described = {"model": plain(config), "vocab_size": vocab_size, "context_length": T, "tokenizer_sha256": digest}
    origin = {"code": {}, "data": {"tokenizer": digest}, "params": {"train": {"lr": 0.02}}}
    save_checkpoint(root / "data/train/best", decoder.state_dict(), {}, described, state, origin=origin)


def write_metrics_of_other_stages(data: Path) -> None:
    """What stands on the page beside the evaluation."""
    (data / "pack/documents").mkdir()
    for split, texts in (("train", TRAIN), ("validation", TEST[:2]), ("test", TEST)):
        sources = ["code" if "def " in text else "prose" for text in texts]
        n_bytes = [len(text.encode()) for text in texts]
        taken = pa.table({"source": sources, "bytes": n_bytes, "copies": [1] * len(texts)})
        pq.write_table(taken, data / f"pack/documents/{split}.parquet")
    clean = {"documents_out": 45, "bytes_out": 900, "dropped.min_words": 3, "dropped.languages": 0}
    for name, value in {
        "download/manifest.json": {"documents": 50, "bytes": 1000},
        "clean/metrics.json": clean,
        "dedup/metrics.json": {"documents_out": 43, "bytes_out": 880, "exact_removed": 2, "near_removed": 0},
        "tokenizer/metrics.json": {"vocab_size": 320, "bytes_per_token": 2.5},
        "tokenizer/report.json": {"longest_tokens": [{"id": 9, "text": " <i>", "count": 2}]},
        "pack/metrics.json": {
            "tokens_train": 1000,
            "tokens_validation": 20,
            "tokens_test": 30,
            "eval_sha256": "51aa",
            "bytes_train": 800,
            "bytes_validation": 40,
            "bytes_test": 40,
        },
        "train/metrics.json": {"steps": 2, "train_loss": 5.5},
        "code/evaluate.json": {"digest": "c0de"},
    }.items():
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        (data / name).write_text(json.dumps(value))
    header = "step,tokens,loss,loss_smooth,lr,grad_norm,validation_loss\n"
    (data / "train/probes.csv").write_text(HEADER + "2,embedding,,0.1,0.001,,\n2,0,1.5,0.2,0.002,3.5,0.25\n")
    (data / "train/loss.csv").write_text(header + "0,0,,,,,5.8\n1,32,5.7,5.7,0.1,1.0,\n2,64,5.6,5.65,0.2,0.5,5.6\n")


SMALL = ModelConfig(n_layers=1, hidden_size=16, n_heads=2, n_kv_heads=1)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("workspace")
    write_workspace(root, SMALL)
    return root


def evaluate(root: Path, params: EvaluateParams = PARAMS) -> Path:
    job = Job("evaluate", root, Execution(device="cpu", tracking=False))
    job.prepare()
    run(job, params)
    job.publish()
    return job.out


@pytest.fixture(scope="module")
def out(root) -> Path:
    return evaluate(root)


def read(path: Path):
    return json.loads(path.read_text(encoding="utf-8"))


def test_metrics_are_those_of_the_contract(root, out):
    metrics = read(out / "metrics.json")
    vocab_size = read(root / "data/pack/test/index.json")["vocab_size"]
    tokenizer = Tokenizer.from_file(str(root / "data/tokenizer/tokenizer.json"))
    n_labels = sum(len(tokenizer.encode(text).ids) + 1 for text in TEST)
    n_bytes = sum(len(text.encode()) for text in TEST)
    assert metrics["test_loss"] == pytest.approx(math.log(vocab_size), abs=1e-5)
    assert metrics["perplexity"] == pytest.approx(vocab_size, rel=1e-5)
    assert metrics["bits_per_byte"] == pytest.approx(n_labels * math.log2(vocab_size) / n_bytes, rel=1e-5)
    assert metrics["bits_per_byte_low"] <= metrics["bits_per_byte"] <= metrics["bits_per_byte_high"]
    digests = [hashlib.sha256(text.encode()).digest() for text in TEST]
    assert metrics["eval_sha256"] == hashlib.sha256(b"".join(digests)).hexdigest(), "as pack names it"
    baselines = {key: value for key, value in metrics.items() if key.startswith("baseline_")}
    assert set(baselines) == {
        f"baseline_{n}" for n in ("byte_trigram", "token_unigram", "token_bigram", "token_trigram", "zstd")
    }
    ngrams = [value for key, value in baselines.items() if key[9:] not in ("zstd", "token_unigram")]
    assert all(0 < value < metrics["bits_per_byte"] for value in ngrams), "they read the text; the model did not"


def test_samples_and_heads(out):
    samples = read(out / "samples.json")
    assert [sample["prompt"] for sample in samples] == ["", "Returns <b>"]
    assert all(sample["finished"] or sample["tokens"] == PARAMS.sample_tokens for sample in samples)
    heads = read(out / "attention.json")
    contract = {"layer", "head", "kind", "entropy", "distance", "sink", "previous", "induction", "duplicate"}
    keys = contract | {"first", "repeated", "nearest", "similarity", "ablation"}
    assert [(head["layer"], head["head"]) for head in heads] == [(0, 0), (0, 1)]
    assert all(set(head) == keys and head["kind"] == "full" for head in heads)


def test_plots_have_the_columns_that_dvc_yaml_names(out):
    headers = {path.name: path.read_text().split("\n")[0] for path in (out / "plots").iterdir()}
    assert headers == {
        "loss_by_position.csv": "position,loss,n",
        "loss_by_frequency.csv": "frequency,loss,n",
        "documents.csv": "document,bytes,bits_per_byte",
        "loss_by_source.csv": "source,documents,bytes,bits_per_byte",
    }


def test_equal_inputs_give_equal_bytes(root, out):
    def content() -> dict[str, bytes]:
        return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}

    before = content()
    evaluate(root)
    assert content() == before


class Page(HTMLParser):
    """Collects tags, and checks that each is closed where it should be."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[str] = []
        self.words = ""

    def handle_starttag(self, tag, attrs):
        self.attributes += [f"{name}={value}" for name, value in attrs]
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words += data if not self.open or self.open[-1] not in ("script", "style") else ""


def test_the_report_asks_nothing_of_the_outside_and_escapes_text(out):
    page = Page()
    page.feed((out / "report.html").read_text(encoding="utf-8"))
    assert page.open == []
    assert not [a for a in page.attributes if a.startswith(("href", "src")) or "//" in a]
    assert "Returns <b>" in page.words and "·<i>" in page.words and "token trigram" in page.words


def test_loss_by_source_adds_up_to_all_of_it(out):
    rows = [line.split(",") for line in (out / "plots/loss_by_source.csv").read_text().split()[1:]]
    assert [(name, int(documents)) for name, documents, _, _ in rows] == [("code", 1), ("prose", 2)]
    bits = sum(int(n_bytes) * float(per_byte) for _, _, n_bytes, per_byte in rows)
    metrics = read(out / "metrics.json")
    assert bits / sum(int(row[2]) for row in rows) == pytest.approx(metrics["bits_per_byte"], abs=1e-5)


def test_the_comparison_is_ordered_and_signed():
    names = ("token_trigram", "token_bigram", "token_unigram", "byte_trigram", "zstd")
    metrics = {f"baseline_{name}": value for name, value in zip(names, (2.0, 2.5, 4.8, 4.0, 3.0), strict=True)}
    rows = comparison(metrics | {"bits_per_byte": 2.4, "bits_per_byte_low": 2.3, "bits_per_byte_high": 2.5})
    assert rows[1][:3] == ["model", "2.400", "2.300 to 2.500"]
    assert [row[3] for row in rows[2:]] == ["+20.0%", "-4.0%", "-20.0%", "-40.0%", "-50.0%"]


def test_further_texts_are_named_with_their_sha256_and_have_figures_of_their_own(root, out):
    path = root / "news.txt"
    path.write_text(TEST[0])
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    job = Job("evaluate", root, Execution(device="cpu", tracking=False))
    job.prepare()
    run(job, PARAMS.model_copy(update={"texts": {"news": TextFile(path="news.txt", sha256=digest)}}))
    metrics = read(job.staging / "metrics.json")
    assert metrics["news_loss"] == pytest.approx(metrics["test_loss"], abs=1e-5), "every token is alike to this model"
    assert metrics["news_bits_per_byte"] == metrics["news_bits_per_byte_strided"]
    with pytest.raises(BadInput, match=f"evaluate.texts.news: news.txt: its sha256 is {digest}, not given; paste it"):
        evaluate(root, PARAMS.model_copy(update={"texts": {"news": TextFile(path="news.txt")}}))
    with pytest.raises(BadInput, match="evaluate.texts.news: gone.txt: not there"):
        evaluate(root, PARAMS.model_copy(update={"texts": {"news": TextFile(path="gone.txt")}}))
    with pytest.raises(ValueError, match="begins the names of its metrics"):
        EvaluateParams(texts={"test": {"path": "news.txt"}})


@pytest.mark.parametrize(("name", "left", "told"), [
    ("loss.csv", -4, "ends in the middle of a line"),
    ("loss.csv", -len("2,64,5.6,5.65,0.2,0.5,5.6\n"), "ends at 1, the training at 2"),
    ("loss.csv", 0, "ends in the middle of a line"),
    ("probes.csv", -1, "ends in the middle of a line"),
])  # fmt: skip
def test_curves_that_are_cut_off_are_refused_before_anything_is_measured(root, name, left, told):
    path = root / "data/train" / name
    before = path.read_text()
    path.write_text(before[:left])
    try:
        with pytest.raises(BadInput, match=f"^data/train/{name}: {told}; run `dvc checkout train`"):
            evaluate(root)
    finally:
        path.write_text(before)


def test_text_of_another_tokenizer_is_refused(root):
    path = root / "data/pack/test/index.json"
    before = path.read_text()
    path.write_text(json.dumps(read(path) | {"tokenizer_sha256": "another"}))
    with pytest.raises(BadInput, match=r"data/pack/test: made with another tokenizer"):
        evaluate(root)
    path.write_text(before)


def test_defaults_are_those_of_params_yaml():
    params = ParamsFile(Path(__file__).parents[2] / "params.yaml")
    assert params.section("evaluate", EvaluateParams) == EvaluateParams()


OWN_ATTENTION = """
from torch import nn

class Itself(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.output = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x_BTC, context):
        return self.output(x_BTC)
"""


def test_where_no_layer_shows_what_it_looks_at_the_report_says_so(tmp_path, monkeypatch) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code/itself.py").write_text(OWN_ATTENTION)
    monkeypatch.setattr(model, "__path__", [*model.__path__, str(tmp_path / "code")])
    monkeypatch.delitem(sys.modules, "model.itself", raising=False)
    write_workspace(tmp_path, dataclasses.replace(SMALL, n_layers=2, layer_pattern="model.itself.Itself"))
    out = evaluate(tmp_path)
    monkeypatch.delitem(sys.modules, "model.itself")
    assert json.loads((out / "attention.json").read_text()) == []
    assert "<p>No layer shows what it looks at" in (out / "report.html").read_text()
