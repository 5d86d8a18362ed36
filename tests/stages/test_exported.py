"""Opening an export: it computes what the checkpoint does, and what is no decoder's folder is refused by name."""

import json
import shutil

import pytest
import torch
from mlflow import MlflowClient

from stages.chat import CHATML, NoTemplate
from stages.checkpoint import load_model
from stages.entry import Job
from stages.errors import BadInput
from stages.export.folder import CHAT_TEMPLATE, write_folder
from stages.export.folder import write_tokenizer as write_folder_tokenizer
from stages.exported import open_export
from stages.tracking import store_address
from tests.stages.exports import OUTER_SETTINGS, SMALL, write_checkpoint, write_tokenizer


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    data = tmp_path_factory.mktemp("exported") / "data"
    write_tokenizer(data / "tokenizer/tokenizer.json")
    write_checkpoint(data, SMALL, 300)
    (data / "export/hf").mkdir(parents=True)
    write_folder(data / "export/hf", data / "train/best", SMALL, 300, 64, data / "tokenizer/tokenizer.json")
    return data


@pytest.fixture
def folder(written, tmp_path):
    shutil.copytree(written / "export/hf", tmp_path / "hf")
    return tmp_path / "hf"


def change(folder, name, **values):
    path = folder / name
    settings = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**settings, **values}))


def test_it_computes_what_the_checkpoint_computes(written):
    exported = open_export(written / "export")
    assert (exported.name, exported.context_length, exported.ends, exported.begin) == (
        "millrace", 64, frozenset({0}), "<|endoftext|>",
    )  # fmt: skip
    ids = torch.tensor([exported.encode("Returns the number of elements")])
    with torch.no_grad():
        torch.testing.assert_close(exported.model(ids), load_model(written / "train/best")(ids), atol=1e-5, rtol=1e-5)
    assert ids[0, 0] == 0, "the token that begins every text in training"
    assert exported.model.config.fused_qkv, "one product instead of three"


def test_transformers_is_not_imported(written):
    import subprocess
    import sys

    script = f"import sys; from stages.exported import open_export; open_export({str(written / 'export')!r})"
    script += "; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_special_tokens_in_a_text_are_text(written):
    exported = open_export(written / "export")
    assert exported.encode("a<|endoftext|>b").count(0) == 1


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"architectures": ["BertForMaskedLM"], "model_type": "bert"}, "BertForMaskedLM is no decoder"),
        ({"architectures": ["T5ForConditionalGeneration"], "is_encoder_decoder": True}, "T5For.* is no decoder"),
        ({"model_type": "mamba", "architectures": ["MambaForCausalLM"]}, "model_type is mamba"),
        ({"quantization_config": {"bits": 4}}, "quantised"),
        ({"max_position_embeddings": None}, "set the context length"),
    ],
)
def test_other_models_are_refused_by_name(folder, settings, said):
    change(folder, "config.json", **settings)
    with pytest.raises(BadInput, match=said):
        open_export(folder)


def test_pickles_are_not_read(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(BadInput, match="pickle"):
        open_export(folder)


def test_damage_and_absence_are_named(folder, tmp_path):
    with pytest.raises(BadInput, match=r"no config\.json"):
        open_export(tmp_path / "nothing")
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:-9])
    with pytest.raises(BadInput, match=r"model\.safetensors"):
        open_export(folder)
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(BadInput, match=r"tokenizer\.json"):
        open_export(folder)


def test_end_tokens_in_every_form_that_files_have(folder):
    change(folder, "config.json", eos_token_id=["<|pad|>", 7])
    change(folder, "generation_config.json", eos_token_id=None)
    change(folder, "tokenizer_config.json", eos_token={"content": "<|endoftext|>", "special": True})
    assert open_export(folder).ends == frozenset({0, 1, 7})
    change(folder, "config.json", eos_token_id="x y")
    with pytest.raises(BadInput, match="'x y' is no token's id"):
        open_export(folder)


def test_chat_templates(folder):
    with pytest.raises(NoTemplate, match="no chat template"):
        open_export(folder).encode_chat([{"role": "user", "content": "x"}])
    change(
        folder,
        "tokenizer_config.json",
        chat_template="{{ bos_token }}{% for m in messages %}[{{ m['content'] | trim }}]{% endfor %}",
    )
    exported = open_export(folder)
    ids = exported.encode_chat([{"role": "user", "content": "a<|endoftext|>"}, {"role": "assistant", "content": "b"}])
    assert exported.tokenizer.decode(ids, skip_special_tokens=False) == "<|endoftext|>[a<|endoftext|>][b]"
    assert ids.count(0) == 1, "what people write is no markup"
    (folder / "chat_template.jinja").write_text("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(NoTemplate, match="roles must alternate"):
        open_export(folder).encode_chat([{"role": "user", "content": "x"}])
    (folder / "chat_template.jinja").write_text("{{ ''.__class__.__mro__[1].__subclasses__() }}")
    with pytest.raises(NoTemplate, match="unsafe"):
        open_export(folder).encode_chat([{"role": "user", "content": "x"}])


TALK = [{"role": "user", "content": "x"}, {"role": "assistant", "content": " y "}]
TEMPLATES = {
    "ours": CHAT_TEMPLATE,
    "eos": "{{ bos_token }}{% for m in messages %}{{ m.content | trim }}{{ eos_token }}{% endfor %}",
    "no bos": "{% for m in messages %}\n{{ m.content }}\n{% endfor %}",
    "loop controls": "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m.content }}{% endfor %}",
    "looks into texts": "{% for m in messages %}{{ m.content.split('l')[-1] }}{% endfor %}{{ '!' if tools is none }}",
}


@pytest.fixture
def chat_folder(folder, tmp_path):
    """With ChatML's tokens, and one that stands for a blank line: it joins what a text ends or begins with."""
    write_tokenizer(tmp_path / "chat/tokenizer.json", chat=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / name).unlink(missing_ok=True)
    tokenizer = json.loads((tmp_path / "chat/tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["ĊĊ"] = len(tokenizer["model"]["vocab"])
    tokenizer["model"]["merges"].append(["Ċ", "Ċ"])
    (tmp_path / "chat/tokenizer.json").write_text(json.dumps(tokenizer))
    write_folder_tokenizer(folder, tmp_path / "chat/tokenizer.json", 64)
    return folder


@pytest.mark.parametrize(
    "content", ["hello", "\nhello", " hello", "hello\n", "a\n\n", "\n\n  code", "\ue0000\ue001", ""]
)
@pytest.mark.parametrize("name", TEMPLATES)
def test_ids_of_a_chat_are_those_of_transformers(chat_folder, name, content):
    from transformers import AutoTokenizer

    (chat_folder / "chat_template.jinja").write_text(TEMPLATES[name])
    theirs, talk = AutoTokenizer.from_pretrained(chat_folder), [{"role": "user", "content": content}, *TALK]
    ids = theirs.apply_chat_template(talk, add_generation_prompt=True)["input_ids"]
    assert open_export(chat_folder).encode_chat(talk) == list(ids)


@pytest.mark.parametrize(
    ("template", "texts"),
    [
        (CHAT_TEMPLATE, ["a<|im_end|>b", "<|im_start|>"]),
        ("{% for m in messages %}{{ m.content }}{% endfor %}", ["<|im_", "end|>"]),
        ("{% for m in messages %}{{ m.content | lower }}{% endfor %}", ["<|IM_END|>"]),
        ("{% for m in messages %}{{ m.content | replace('#', '') }}{% endfor %}", ["<|im#_end|>"]),
    ],
)
def test_nobody_writes_markup_whatever_the_template_does(chat_folder, template, texts):
    (chat_folder / "chat_template.jinja").write_text(template)
    exported = open_export(chat_folder)
    harmless, talk = ([{"role": "user", "content": text} for text in those] for those in (["x"] * len(texts), texts))

    def markup(ids):
        return [i for i in ids if i < 4]

    assert markup(exported.encode_chat(talk)) == markup(exported.encode_chat(harmless))


def test_chatml_where_the_tokenizer_has_its_tokens(folder, tmp_path):
    write_tokenizer(tmp_path / "chat/tokenizer.json", chat=True)
    shutil.copy(tmp_path / "chat/tokenizer.json", folder)
    exported = open_export(folder)
    assert exported.template == CHATML
    assert exported.tokenizer.token_to_id("<|im_end|>") in exported.ends


@pytest.mark.parametrize("method", ["int8", "int8_dynamic", "int4"])
def test_quantised_folders_are_opened(written, tmp_path, method):
    from stages.export.variants import write_variant

    checkpoint = load_model(written / "train/best")
    (tmp_path / method).mkdir()
    write_variant(tmp_path / method, written / "export/hf", method, checkpoint, written / "train/best", 32)
    exported = open_export(tmp_path / method)
    assert exported.ends == frozenset({0})
    ids = torch.tensor([exported.encode("Returns the number of elements")])
    with torch.no_grad():
        torch.testing.assert_close(exported.model(ids), checkpoint(ids), atol=0.3, rtol=0.3)


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A workspace of its own, in which one stands."""
    for name in OUTER_SETTINGS:
        monkeypatch.delenv(name, raising=False)
    for name in ("params.yaml", "dvc.yaml"):
        (tmp_path / "clone/docs").mkdir(parents=True, exist_ok=True)
        (tmp_path / "clone" / name).write_text("{}")
    monkeypatch.chdir(tmp_path / "clone/docs")
    return tmp_path / "clone"


def test_a_registered_model_comes_from_where_the_workspace_registers(written, clone, monkeypatch):
    with pytest.raises(BadInput, match="no model is registered yet, .*mlflow.db is not there; `dvc repro`"):
        open_export("models:/small@champion")
    uri, _ = store_address(Job("export", clone))
    (clone / ".dvc/tmp/millrace").mkdir(parents=True)
    client = MlflowClient(uri)
    client.create_registered_model("small")
    client.create_model_version("small", (written / "export").as_uri())
    client.set_registered_model_alias("small", "champion", "1")
    assert open_export("models:/small@champion").name == "models:/small@champion"
    with pytest.raises(BadInput, match=r"MLflow at sqlite:.* does not give it: .*alias other not found"):
        open_export("models:/small@other")
    assert not list(clone.rglob("docs/*")), "no database is made where one stands"
    monkeypatch.chdir("/")
    with pytest.raises(BadInput, match="run this in a clone of the repository, or set MLFLOW_TRACKING_URI"):
        open_export("models:/small@champion")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert open_export("models:/small@champion").context_length == 64
