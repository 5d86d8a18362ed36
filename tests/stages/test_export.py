"""The export on a real checkpoint: the folder, the proof, the card, and the registry with its rule."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from model.config import ModelConfig
from model.decoder import Decoder
from stages.checkpoint import save_checkpoint
from stages.entry import Job, file_sha256, plain, write_json
from stages.errors import BadInput
from stages.execution import Execution
from stages.export import check
from stages.export.card import Facts
from stages.export.params import ExportParams
from stages.export.proof import Mismatch
from stages.export.registry import Candidate, promotion, pyfunc_files, register
from stages.export.stage import publish_to_registry, run, write_export
from stages.tokens import row_schema
from stages.tracking import open_run, store_address

CONTEXT_LENGTH = 32
DEAD_SERVER = "http://127.0.0.1:9"
TEXTS = [
    "Returns the number of elements along the given axis.",
    "Computes the eigenvalues of a symmetric matrix,\n\n    and the vectors that belong to them: é, 漢字 😀.",
    "A sparse array in compressed rows.",
]


@pytest.fixture(autouse=True)
def no_outer_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DVC_ROOT", "DVC_EXP_NAME", "DVC_EXP_BASELINE_REV", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)


def write_tokenizer(path: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>", "<|pad|>"],
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


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("workspace")
    write_workspace(root, SMALL)
    return root


def exported(root: Path, execution: Execution | None = None, **params: object) -> Path:
    job = Job("export", root, execution or Execution(tracking=False))
    job.prepare()
    run(job, ExportParams(**params))
    job.publish()
    return job.out


@pytest.fixture(scope="module")
def export(workspace: Path) -> Path:
    """One export, registered in a database of the workspace, that the tests below look at."""
    with pytest.MonkeyPatch.context() as environment:
        for name in ("DVC_ROOT", "DVC_EXP_NAME", "DVC_EXP_BASELINE_REV", "MLFLOW_TRACKING_URI"):
            environment.delenv(name, raising=False)
        return exported(workspace, Execution())


def test_transformers_computes_what_the_checkpoint_computes(export: Path) -> None:
    metrics = json.loads((export / "metrics.json").read_text())
    assert metrics["hf_max_diff"] < 1e-5
    assert metrics["hf_tokens"] > 60 and metrics["hf_greedy_tokens"] > 20


def test_the_folder_works_in_the_hands_of_a_user(export: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(export / "hf")
    model = AutoModelForCausalLM.from_pretrained(export / "hf")
    assert type(model).__name__ == "Qwen3ForCausalLM"
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (0, 0, 1)
    assert tokenizer("Returns").input_ids[0] == 0
    assert tokenizer.decode(tokenizer(TEXTS[1]).input_ids, skip_special_tokens=True) == TEXTS[1]
    inputs = tokenizer(["Returns", "A sparse array"], padding=True, return_tensors="pt")
    assert model.generate(**inputs, max_new_tokens=4).shape[0] == 2


def test_the_manifest_names_every_file_by_its_content(export: Path) -> None:
    manifest = json.loads((export / "manifest.json").read_text())
    assert manifest["architecture"] == "Qwen3ForCausalLM"
    assert {entry["file"] for entry in manifest["files"]} == {f"hf/{path.name}" for path in (export / "hf").iterdir()}
    for entry in manifest["files"]:
        assert hashlib.sha256((export / entry["file"]).read_bytes()).hexdigest() == entry["sha256"]


def test_the_card_has_the_figures_and_the_baselines_and_no_more(export: Path) -> None:
    card = (export / "hf" / "README.md").read_text()
    assert "| this model | 1.712 | 1.690 to 1.730 |" in card
    assert card.index("trigram over the same tokens") < card.index("bigram over the same tokens")
    assert "`Qwen3ForCausalLM`, because of pre_norm and qk_norm (head)." in card
    assert "| `hidden_size` | 32 |" in card
    assert "    Returns| the\n    number\n" in card
    assert file_sha256(export / "hf" / "model.safetensors") in card


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


def proof(root: Path, folder: Path) -> dict:
    data = root / "data"
    sides = [folder, data / "train/best", data / "tokenizer/tokenizer.json", data / "pack/test"]
    return check.check(check.Request(*map(str, sides), documents=3, new_tokens=8, max_difference=1e-4, threads=0))


def test_equal_inputs_give_equal_bytes(workspace: Path, tmp_path: Path) -> None:
    contents = []
    for name in ("here", "there"):
        copy_inputs(workspace, tmp_path / name)
        job, _ = written(tmp_path / name, SMALL)
        contents.append({path.name: path.read_bytes() for path in (job.staging / "hf").iterdir()})
    assert contents[0] == contents[1]
    assert not any(str(tmp_path).encode() in content for content in contents[0].values())


def test_the_ablation_of_the_default_is_a_gemma3_and_proven(workspace: Path, tmp_path: Path) -> None:
    copy_inputs(workspace, tmp_path)
    job, facts = written(tmp_path, dataclasses.replace(SMALL, post_norm=True))
    assert facts.class_name == "Gemma3ForCausalLM"
    compared = proof(tmp_path, job.staging / "hf")
    assert compared["problems"] == [] and compared["difference"] < 1e-5 and compared["documents"] == 3


OWN = {
    "hybrid": {"layer_pattern": "swa,mla", "window": 4, "kv_lora_rank": 16, "qk_nope_head_dim": 8,
               "qk_rope_head_dim": 4, "v_head_dim": 8},
    "experts": {"n_experts": 4, "n_shared_experts": 1, "expert_size": 16},
    "dyt": {"norm": "dyt", "mlp": "relu2", "positions": "sinusoidal", "logit_softcap": 5.0},
}  # fmt: skip


@pytest.mark.parametrize("kind", OWN)
def test_what_transformers_does_not_have_goes_with_its_own_code(workspace: Path, tmp_path: Path, kind: str) -> None:
    """Opened by transformers in another process that has this project's modules nowhere in its path."""
    copy_inputs(workspace, tmp_path)
    job, facts = written(tmp_path, dataclasses.replace(SMALL, **OWN[kind]))
    assert facts.class_name == "MillraceForCausalLM"
    sentence = "`MillraceForCausalLM`, because of the lack of an architecture of transformers that computes the same."
    assert sentence in (job.staging / "hf/README.md").read_text()
    compared = proof(tmp_path, job.staging / "hf")
    assert compared["problems"] == [] and compared["difference"] < 1e-5
    program = (
        "import sys, torch; from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "options = {'trust_remote_code': True}\n"
        "model, loading = AutoModelForCausalLM.from_pretrained('hf', output_loading_info=True, **options)\n"
        "tokenizer = AutoTokenizer.from_pretrained('hf', **options)\n"
        "batch = tokenizer(['a b', 'c'], padding=True, return_tensors='pt')\n"
        "print(model.generate(**batch, max_new_tokens=3, do_sample=False).shape)\n"
        "assert not any(name.split('.')[0] in ('model', 'stages') for name in sys.modules), 'the export stands alone'\n"
        "assert not loading['missing_keys'] and not loading['unexpected_keys'], loading"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules"), "PYTHONPATH": ""}
    command = [sys.executable, "-c", program]
    subprocess.run(command, cwd=job.staging, env=environment, check=True, capture_output=True)


def test_the_proof_sees_other_weights(workspace: Path, tmp_path: Path) -> None:
    copy_inputs(workspace, tmp_path)
    job, _ = written(tmp_path, SMALL)
    folder = job.staging.rename(tmp_path / "kept") / "hf"
    written(tmp_path, SMALL, seed=1)
    problems = proof(tmp_path, folder)["problems"]
    assert problems[0].startswith("logits differ by") and "test document" in problems[0]
    assert problems[1].startswith("greedy text of test document 0 differs at token")


def test_the_proof_sees_a_missing_tensor_and_another_tokenizer(workspace: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    copy_inputs(workspace, tmp_path)
    job, _ = written(tmp_path, SMALL)
    weights = load_file(job.staging / "hf/model.safetensors")
    weights["model.layers.0.extra.weight"] = weights.pop("model.layers.1.mlp.up_proj.weight")
    save_file(weights, job.staging / "hf/model.safetensors", metadata={"format": "pt"})
    tokenizer = json.loads((job.staging / "hf/tokenizer.json").read_text())
    tokenizer["model"]["merges"] = tokenizer["model"]["merges"][:3]
    (job.staging / "hf/tokenizer.json").write_text(json.dumps(tokenizer))
    problems = proof(tmp_path, job.staging / "hf")["problems"]
    assert "missing_keys: model.layers.1.mlp.up_proj.weight" in problems
    assert "unexpected_keys: model.layers.0.extra.weight" in problems
    assert "the exported tokenizer gives other ids than ours for test document 0" in problems


@pytest.mark.slow
def test_what_differs_is_not_published(workspace: Path, tmp_path: Path) -> None:
    copy_inputs(workspace, tmp_path)
    written(tmp_path, dataclasses.replace(SMALL, post_norm=True))
    with pytest.raises(Mismatch, match=r"logits differ by .*, over 1e-12, in test document \d at token \d+; nothing"):
        exported(tmp_path, max_difference=1e-12)
    assert not (tmp_path / "data" / "export").exists()


def test_a_damaged_checkpoint_and_a_foreign_tokenizer_are_named(workspace: Path, tmp_path: Path) -> None:
    copy_inputs(workspace, tmp_path)
    tokenizer = tmp_path / "data/tokenizer/tokenizer.json"
    tokenizer.write_text(tokenizer.read_text() + "\n")
    with pytest.raises(BadInput, match=r"tokenizer\.json: sha256 .* but the checkpoint was trained with"):
        exported(tmp_path)
    weights = tmp_path / "data/train/best/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(BadInput, match=r"model\.safetensors: differs from its checksum"):
        exported(tmp_path)


def test_without_mlflow_the_log_says_how_to_register_later(
    workspace: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    copy_inputs(workspace, tmp_path)
    job, facts = written(tmp_path, SMALL)
    job.execution = Execution(tracking_uri=DEAD_SERVER)
    with open_run(job, "unreachable", {}) as tracked:
        publish_to_registry(job, ExportParams(), facts, tracked)
    said = capsys.readouterr().out
    assert "the export is whole but not registered (it does not answer)" in said
    assert "dvc repro --force --single-item export" in said


def client_of(root: Path):
    from mlflow import MlflowClient

    return MlflowClient(store_address(Job("export", root))[0])


def test_the_model_is_registered_with_its_provenance_and_is_champion(workspace: Path, export: Path) -> None:
    client = client_of(workspace)
    version = client.get_model_version_by_alias("millrace", "champion")
    assert version.tags["bits_per_byte"] == "1.7123" and version.tags["eval_sha256"] == "51aa"
    assert version.tags["model_sha256"] == file_sha256(export / "hf" / "model.safetensors")
    assert version.tags["train_digest"] == "digest0" and len(version.tags["tokenizer_sha256"]) == 64
    assert version.tags["promotion"] == "champion: the first, with 1.7123 bits per byte"
    assert client.get_run(version.run_id).data.tags["millrace.run"] == "digest0"


def test_mlflow_loads_the_registered_model_and_it_writes_text(
    workspace: Path, export: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow.pyfunc

    monkeypatch.setattr(sys, "path", list(sys.path))
    client = client_of(workspace)
    mlflow.set_tracking_uri(client.tracking_uri)
    model = mlflow.pyfunc.load_model("models:/millrace@champion")
    few = model.predict(["Returns the", "A"], params={"max_new_tokens": 3})
    assert len(few) == 2 and all(isinstance(text, str) for text in few)
    drawn = [model.predict("Returns", params={"temperature": 1.0, "seed": seed}) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_what_travels_with_a_version_needs_nothing_of_ours() -> None:
    imported = [line for line in pyfunc_files()["code/millrace_pyfunc.py"].splitlines() if "import" in line]
    assert not any("stages" in line or "from model" in line for line in imported)


def candidate(
    root: Path, sha256: str, bits_per_byte: float, eval_sha256: str = "e1", experiment: str = ""
) -> Candidate:
    folder = root / "model"
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text("{}")
    tags = {"bits_per_byte": str(bits_per_byte), "eval_sha256": eval_sha256}
    return Candidate("rules", sha256, folder, tags, experiment)


def test_champion_moves_by_rule_and_the_version_says_why(workspace: Path, export: Path, tmp_path: Path) -> None:
    said = []

    def registered(*args: object, **options: str) -> str:
        line = tracked.call(lambda client, run_id: register(client, run_id, candidate(tmp_path, *args, **options)), 60)
        said.append(line)
        return str(client.get_registered_model("rules").aliases.get("champion"))

    client = client_of(workspace)
    with open_run(Job("export", workspace), "rules", {}) as tracked:
        assert registered("a", 1.9, experiment="bluff-gyms") == "None"
        assert registered("b", 1.8) == "2"
        assert registered("c", 1.81) == "2"
        assert registered("d", 1.7, experiment="bluff-gyms") == "2"
        assert registered("e", 1.7, eval_sha256="e2") == "2"
        assert registered("f", float("nan")) == "2"
        assert registered("d", 1.7) == "4"
        assert registered("d", 1.7) == "4"
        tags = {str(v.version): v.tags["promotion"] for v in client.search_model_versions("name = 'rules'")}
        client.set_registered_model_alias("rules", "champion", "5")  # as the line about version 5 tells
        assert registered("e", 1.7, eval_sha256="e2") == "5"
    assert said[-2].startswith("rules version 4 (known already); champion: 1.7000")
    assert said[-1] == "rules version 5 (known already); champion: chosen by hand"
    assert tags["1"] == "not champion: made in the DVC experiment bluff-gyms, where no alias moves"
    assert tags["2"] == "champion: the first, with 1.8000 bits per byte"
    assert tags["3"] == "not champion: 1.8100 bits per byte are not below the 1.8000 of version 2 on the same text"
    assert tags["4"] == "champion: 1.7000 bits per byte are below the 1.8000 of version 2 on the same text"
    assert tags["5"] == (
        "not champion: version 2 was measured on other text (e1, here e2); to choose this one all the same: "
        "MlflowClient().set_registered_model_alias('rules', 'champion', '5'), see docs/tracking.md"
    )
    assert tags["6"].startswith("not champion: nan bits per byte are not below")


def test_a_champion_chosen_by_hand_without_figures_is_not_replaced(
    workspace: Path, export: Path, tmp_path: Path
) -> None:
    client = client_of(workspace)
    client.create_registered_model("hand")
    by_hand = client.create_model_version("hand", (tmp_path / "any").as_uri())
    moves, reason = promotion(candidate(tmp_path, "a", 1.0), client.get_model_version("hand", "1"), None)
    assert moves and reason.startswith("the first")
    other = client.create_model_version("hand", (tmp_path / "any").as_uri())
    moves, reason = promotion(candidate(tmp_path, "a", 1.0), other, by_hand)
    assert not moves and "was measured on other text (unknown" in reason
