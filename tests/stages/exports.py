"""A workspace with a small checkpoint, and exports of it, for the tests of the stage `export`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow as pa
import torch

from model.config import ModelConfig
from model.decoder import Decoder
from stages.checkpoint import save_checkpoint
from stages.entry import Job, plain
from stages.execution import Execution
from stages.export.card import Facts
from stages.export.params import ExportParams
from stages.export.stage import run, write_export
from stages.files import file_sha256, write_json
from stages.tokens import row_schema

CONTEXT_LENGTH = 32
OUTER_SETTINGS = ("DVC_ROOT", "DVC_EXP_NAME", "DVC_EXP_BASELINE_REV", "MLFLOW_TRACKING_URI")
TEXTS = [
    "Returns the number of elements along the given axis.",
    "Computes the eigenvalues of a symmetric matrix,\n\n    and the vectors that belong to them: é, 漢字 😀.",
    "A sparse array in compressed rows.",
]


def write_tokenizer(path: Path, chat: bool = False) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>", "<|pad|>", *(["<|im_start|>", "<|im_end|>"] if chat else [])],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    path.parent.mkdir(parents=True)
    tokenizer.save(str(path))


def write_test_rows(folder: Path, tokenizer_file: Path) -> int:
    """Every text in rows of its own, cut at the context length. Returns the size of the vocabulary."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    columns: dict[str, list] = {name: [] for name in ("input_ids", "lengths", "next_ids", "documents", "offsets")}
    for number, text in enumerate(TEXTS):
        labels = [*tokenizer.encode(text).ids, 0]
        inputs = [0, *labels[:-1]]
        for start in range(0, len(inputs), CONTEXT_LENGTH):
            piece = inputs[start : start + CONTEXT_LENGTH]
            columns["input_ids"].append(piece + [1] * (CONTEXT_LENGTH - len(piece)))
            columns["lengths"].append([len(piece)])
            columns["next_ids"].append([labels[start + len(piece) - 1]])
            columns["documents"].append([number])
            columns["offsets"].append([start])
    vocab_size = tokenizer.get_vocab_size()
    table = pa.table(columns, schema=row_schema(CONTEXT_LENGTH, vocab_size))
    folder.mkdir(parents=True)
    with pa.OSFile(str(folder / "00000.arrow"), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    shard = {"file": "00000.arrow", "rows": table.num_rows, "bytes": (folder / "00000.arrow").stat().st_size}
    index = {"version": 1, "context_length": CONTEXT_LENGTH, "vocab_size": vocab_size, "shards": [shard]}
    write_json(folder / "index.json", index)
    return vocab_size


def write_checkpoint(data: Path, config: ModelConfig, vocab_size: int, seed: int = 0) -> None:
    model, generator = Decoder(config, vocab_size), torch.Generator().manual_seed(seed)
    model.initialise(generator)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("output.weight", "down.weight")):
                parameter.normal_(0, 0.1, generator=generator)
    described = {
        "model": plain(config),
        "vocab_size": vocab_size,
        "context_length": CONTEXT_LENGTH,
        "tokenizer_sha256": file_sha256(data / "tokenizer" / "tokenizer.json"),
    }
    state = {"run": f"digest{seed}", "step": 40, "seed": 0, "rows_per_step": 8, "tokens": 9000}
    save_checkpoint(data / "train" / "best", model.state_dict(), {}, described, state)


def write_workspace(root: Path, config: ModelConfig) -> None:
    data = root / "data"
    write_tokenizer(data / "tokenizer" / "tokenizer.json")
    vocab_size = write_test_rows(data / "pack" / "test", data / "tokenizer" / "tokenizer.json")
    write_checkpoint(data, config, vocab_size)
    (data / "evaluate").mkdir()
    tokens = {"tokens_train": 9000, "tokens_validation": 300, "tokens_test": 200}
    write_json(data / "pack" / "metrics.json", {**tokens, "eval_sha256": "51aa"})
    train = {"steps": 50, "tokens": 11000, "parameters": 12345, "best_validation_loss": 4.2, "best_step": 40}
    write_json(data / "train" / "metrics.json", train)
    figures = {"bits_per_byte": 1.7123, "bits_per_byte_low": 1.69, "bits_per_byte_high": 1.73, "perplexity": 44.0}
    baselines = {"baseline_byte_trigram": 2.99, "baseline_token_bigram": 1.95, "baseline_token_trigram": 1.62}
    write_json(
        data / "evaluate" / "metrics.json", {**figures, **baselines, "baseline_zstd": 2.4, "eval_sha256": "51aa"}
    )
    sample = {"prompt": "Returns", "continuation": " the\nnumber", "tokens": 3, "finished": True}
    write_json(data / "evaluate" / "samples.json", [sample])


SMALL = ModelConfig(n_layers=2, hidden_size=32, n_heads=4, n_kv_heads=2)


def exported(root: Path, execution: Execution | None = None, **params: object) -> Path:
    job = Job("export", root, execution or Execution(tracking=False))
    job.prepare()
    run(job, ExportParams(**params))
    job.publish()
    return job.out


def copy_inputs(workspace: Path, root: Path) -> None:
    shutil.copytree(workspace / "data", root / "data", ignore=shutil.ignore_patterns("export", "export.partial"))


def written(root: Path, config: ModelConfig, seed: int = 0) -> tuple[Job, Facts]:
    """The folder of another checkpoint, in staging, unproven."""
    data = root / "data"
    write_checkpoint(data, config, json.loads((data / "pack/test/index.json").read_text())["vocab_size"], seed)
    job = Job("export", root, Execution(tracking=False))
    job.prepare()
    checkpoint = data / "train" / "best"
    return job, write_export(job, ExportParams(), checkpoint, json.loads((checkpoint / "state.json").read_text()))
