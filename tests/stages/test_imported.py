"""`millrace import`: a folder of transformers becomes a checkpoint that computes the same and starts a training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from pipeline.import_ import import_
from stages.checkpoint import load_model, problem_of
from stages.errors import BadInput
from stages.execution import Execution
from stages.export.own_code import own_settings, own_weights
from stages.exported import LENGTH_KEYS
from stages.files import file_sha256
from stages.first_weights import problem_of_first_weights
from stages.imported import import_folder
from tests.stages.twins import CONTEXT_LENGTH, OURS, TOKEN_IDS, VOCAB_SIZE, decoder, exported, ours_of

CASES = {"qwen3": False, "gemma3": False, "gpt2": False, "mixtral": False, "own code": True}


def write(folder: Path, case: str, own: bool, files: int = 1) -> torch.nn.Module:
    made = decoder(ours_of({} if own else OURS[case][1]))
    settings, tensors = exported(made)
    if own:
        settings = own_settings(made.config, VOCAB_SIZE, CONTEXT_LENGTH, TOKEN_IDS)
        tensors = {name: tensor.contiguous() for name, tensor in own_weights(made.state_dict()).items()}
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(settings))
    if files == 1:
        save_file(tensors, folder / "model.safetensors")
    else:
        place = {name: f"model-{number % files}.safetensors" for number, name in enumerate(tensors)}
        for file in set(place.values()):
            save_file({name: tensors[name] for name in tensors if place[name] == file}, folder / file)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": place}))
    return made


@pytest.mark.parametrize("case", CASES)
def test_the_checkpoint_computes_what_the_folder_does_and_starts_a_training(case: str, tmp_path: Path) -> None:
    made = write(tmp_path / "theirs", case, CASES[case])
    found = import_folder(tmp_path / "theirs", tmp_path / "ours")
    assert problem_of(tmp_path / "ours") is None
    inputs = torch.arange(CONTEXT_LENGTH)[None]
    with torch.no_grad():
        assert torch.allclose(load_model(tmp_path / "ours")(inputs), made(inputs), atol=1e-5)
    assert (found.vocab_size, found.context_length) == (VOCAB_SIZE, CONTEXT_LENGTH)
    assert found.n_parameters == sum(parameter.numel() for parameter in made.parameters())
    config = type(found.config)(**{**vars(found.config), "init_sha256": found.weights_sha256})
    start = Execution(init_from=str(tmp_path / "ours"))
    assert problem_of_first_weights(config, start, tmp_path / "elsewhere", CONTEXT_LENGTH) is None


def test_several_files_of_weights_become_one(tmp_path: Path) -> None:
    write(tmp_path / "one", "qwen3", False)
    write(tmp_path / "many", "qwen3", False, files=3)
    shas = {import_folder(tmp_path / name, tmp_path / f"{name} ours").weights_sha256 for name in ("one", "many")}
    assert len(shas) == 1


def test_the_command_prints_what_to_set(tmp_path: Path) -> None:
    write(tmp_path / "theirs", "gpt2", False)
    (tmp_path / "theirs/tokenizer.json").write_text("{}")
    done = CliRunner().invoke(import_, [str(tmp_path / "theirs"), "--out", str(tmp_path / "ours")])
    assert done.exit_code == 0, done.output
    assert "no optimizer state, step 0" in done.output
    assert "  model.positions: learned\n" in done.output and "  model.norm: layernorm\n" in done.output
    assert f"  model.init_sha256: {file_sha256(tmp_path / 'ours/model.safetensors')}\n" in done.output
    assert f"  tokenizer.file_sha256: {file_sha256(tmp_path / 'theirs/tokenizer.json')}\n" in done.output
    assert problem_of(tmp_path / "ours") is None


def test_what_cannot_be_imported_is_named(tmp_path: Path) -> None:
    write(tmp_path / "theirs", "qwen3", False)
    import_folder(tmp_path / "theirs", tmp_path / "ours")
    assert (tmp_path / "ours/model.safetensors").stat().st_mode == (tmp_path / "ours/config.json").stat().st_mode
    done = CliRunner().invoke(import_, [str(tmp_path / "theirs"), "--out", "inputs/theirs"])
    assert isinstance(done.exception, BadInput) and "download looks for documents" in str(done.exception)
    settings = json.loads((tmp_path / "theirs/config.json").read_text())
    without = {key: value for key, value in settings.items() if key not in LENGTH_KEYS}
    (tmp_path / "theirs/config.json").write_text(json.dumps(without))
    with pytest.raises(BadInput, match="no length"):
        import_folder(tmp_path / "theirs", tmp_path / "other")
    (tmp_path / "theirs/config.json").write_text(json.dumps(settings))
    with pytest.raises(BadInput, match="is there already"):
        import_folder(tmp_path / "theirs", tmp_path / "ours")
    (tmp_path / "theirs/model.safetensors").unlink()
    with pytest.raises(BadInput, match=r"model\.safetensors is not there"):
        import_folder(tmp_path / "theirs", tmp_path / "other")
    (tmp_path / "theirs/config.json").write_text('{"model_type": "mamba"}')
    with pytest.raises(BadInput, match="mamba"):
        import_folder(tmp_path / "theirs", tmp_path / "other")
    with pytest.raises(BadInput, match=r"config\.json is not there"):
        import_folder(tmp_path / "nowhere", tmp_path / "other")
    assert not (tmp_path / "other").exists()
