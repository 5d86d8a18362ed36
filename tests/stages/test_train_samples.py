"""execution.sample_prompts: texts at each validation, which training does not notice."""

import json
from pathlib import Path

import pytest

from stages.errors import BadInput
from stages.files import file_sha256
from tests.stages.conftest import VOCABULARY
from tests.stages.test_train import EXECUTION, run_in

SAMPLING = EXECUTION.model_copy(update={"sample_prompts": ["", "w5 w6"], "sample_tokens": 5})


def write_tokenizer(root: Path) -> None:
    """A word for each id, as the rows of the fixture have them; 0 is end-of-text."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {"<|endoftext|>": 0, "<|pad|>": 1, **{f"w{number}": number for number in range(2, VOCABULARY)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<|pad|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<|endoftext|>", "<|pad|>"])
    path = root / "data/tokenizer/tokenizer.json"
    path.parent.mkdir(parents=True)
    tokenizer.save(str(path))
    for split in ("train", "validation"):
        index = root / f"data/pack/{split}/index.json"
        index.write_text(index.read_text().replace("0" * 64, file_sha256(path)))


def test_every_validation_continues_the_prompts_and_no_bit_of_training_changes(packed, tmp_path_factory):
    write_tokenizer(packed)
    without = run_in(packed)
    assert (without / "monitor/samples.jsonl").read_text() == ""
    expected = {name: (without / name).read_bytes() for name in ("last/manifest.json", "loss.csv", "metrics.json")}
    other = SAMPLING.model_copy(update={"scratch": str(tmp_path_factory.mktemp("scratch"))})
    out = run_in(packed, execution=other)
    assert {name: (out / name).read_bytes() for name in expected} == expected
    samples = [json.loads(line) for line in (out / "monitor/samples.jsonl").read_text().splitlines()]
    assert [(sample["step"], sample["prompt"]) for sample in samples] == [
        (step, prompt) for step in (4, 8, 12) for prompt in ("", "w5 w6")
    ]
    assert all(sample["text"].startswith("w") for sample in samples)
    last = f"step 12 SAMPLE {json.dumps('w5 w6' + samples[-1]['text'])}"
    assert last in (out / "training.log").read_text()


def test_the_same_weights_write_the_same_texts(packed, tmp_path_factory):
    write_tokenizer(packed)
    texts = []
    for _ in range(2):
        scratch = str(tmp_path_factory.mktemp("scratch"))
        out = run_in(packed, execution=SAMPLING.model_copy(update={"scratch": scratch}))
        texts.append((out / "monitor/samples.jsonl").read_text())
    assert texts[0] == texts[1]


def test_a_tokenizer_that_is_missing_or_another_is_refused_before_the_first_step(packed):
    with pytest.raises(
        BadInput, match=r"execution\.sample_prompts: .*tokenizer\.json is not there; run `dvc repro pack`"
    ):
        run_in(packed, execution=SAMPLING)
    write_tokenizer(packed)
    index = packed / "data/pack/train/index.json"
    index.write_text(index.read_text().replace(file_sha256(packed / "data/tokenizer/tokenizer.json"), "0" * 64))
    with pytest.raises(BadInput, match="is not the tokenizer of data/pack"):
        run_in(packed, execution=SAMPLING)
