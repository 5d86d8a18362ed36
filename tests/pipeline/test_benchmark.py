"""`millrace benchmark`: multiple choice on an export, by its own sums and by lm-evaluation-harness."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from pipeline.benchmark import benchmark, encode, load, log_likelihoods, read_questions, run_harness, score
from stages.errors import BadInput
from tests.stages.exports import SMALL, exported, write_workspace

TASK = """
task: small
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list: [{{metric: acc}}, {{metric: acc_norm}}, {{metric: acc_bytes}}]
"""
WORDS = "Returns the number of elements along given axis eigenvalues é 漢字 symmetric matrix".split()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("workspace")
    write_workspace(root, SMALL)
    return exported(root) / "hf"


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Short ones, one longer than the context, and one that ends with a space."""
    generator, path = random.Random(0), tmp_path_factory.mktemp("questions") / "small.jsonl"
    records = []
    for number in range(40):
        text = " ".join(generator.choices(WORDS, k=generator.randint(1, 40))) + generator.choice(["", "", " ", "\n"])
        choices = [" ".join(generator.choices(WORDS, k=generator.randint(1, 3))) for _ in range(4)]
        records.append({"question": text, "choices": choices, "answer": number % 4})
    path.write_text("\n".join(json.dumps(record) for record in records), encoding="utf-8")
    return path


@torch.inference_mode()
def test_sums_are_those_of_one_sequence_at_a_time(folder):
    model, tokenizer = load(folder, "cpu", trust_code=False)
    asked = [encode("Returns the ", f" {choice}", tokenizer) for choice in ("number", "symmetric", "é")]
    for (ids, n), found in zip(asked, log_likelihoods(asked, model), strict=True):
        log_p = model(torch.tensor([ids[:-1]])).logits[0].log_softmax(-1)
        expected = sum(float(log_p[i - 1, ids[i]]) for i in range(len(ids) - n, len(ids)))
        assert found == pytest.approx(expected, abs=1e-4)


def test_a_sure_model_is_right_by_every_measure():
    """A bigram model on characters, made to follow the alphabet."""

    class Tokenizer:
        def encode(self, text: str) -> list[int]:
            return [min(ord(c), 127) for c in text]

    class Model:
        class config:
            max_position_embeddings = 4

        device = "cpu"

        def __call__(self, ids):
            logits = torch.zeros(*ids.shape, 128)
            following = torch.where(ids == 32, 99, 32)[..., None]
            logits.scatter_(-1, following, 9.0)

            class Output:
                pass

            Output.logits = logits
            return Output

    from pipeline.benchmark import Question

    sure = [Question("a b", ["c", "dddddd"], 0), Question("a longer b ", ["x", "c"], 1)]
    result = score("sure", sure, Model(), Tokenizer())
    assert result.values == {"acc": 1.0, "acc_norm": 1.0, "acc_bytes": 1.0} and result.questions == 2


def test_the_command_prints_a_line_or_json(folder, questions):
    runner = CliRunner()
    said = runner.invoke(benchmark, [str(folder), str(questions), "--limit", "8", "--json"], catch_exceptions=False)
    [result] = json.loads(said.stdout[said.stdout.index("[") :])
    assert result["name"] == "small" and result["questions"] == 8 and set(result["values"]) == {
        "acc", "acc_norm", "acc_bytes"
    }  # fmt: skip
    with pytest.raises(BadInput, match="nothing to answer"):
        runner.invoke(benchmark, [str(folder)], catch_exceptions=False)
    with pytest.raises(BadInput, match=r"has no config\.json"):
        runner.invoke(benchmark, [str(folder.parent), str(questions)], catch_exceptions=False)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "not JSON"),
        ("[1]", "not an object"),
        ('{"choices": ["a", "b"], "answer": 0}', "must be a text"),
        ('{"question": "q", "choices": ["a"], "answer": 0}', "at least two"),
        ('{"question": "q", "choices": ["a", "b"], "answer": 2}', "from 0 to 1"),
        ('{"question": "q", "choices": ["a", "b"], "answer": true}', "from 0 to 1"),
        ("", "has no question"),
    ],
)
def test_what_is_no_question_is_named_with_its_line(tmp_path, line, problem):
    path = tmp_path / "bad.jsonl"
    path.write_text(line)
    with pytest.raises(BadInput, match=rf"bad\.jsonl(:1)?: .*{problem}"):
        read_questions(path)


def test_context_serves_for_question_and_the_answer_may_be_a_text(tmp_path):
    path = tmp_path / "one.jsonl"
    path.write_text('\n{"context": "q", "choices": ["a", "b"], "answer": "b"}\n')
    assert read_questions(path) == [("q", ["a", "b"], 1)]


def test_the_harness_gives_the_same_numbers(folder, questions, tmp_path, monkeypatch):
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed (extra `eval`)")
    pytest.importorskip("accelerate", reason="lm-evaluation-harness has no transformers (extra `eval`)")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    task = tmp_path / "small.yaml"
    task.write_text(TASK.format(file=questions))
    [theirs] = run_harness(folder, [task], None, "cpu", trust_code=False)
    ours = score("small", read_questions(questions), *load(folder, "cpu", trust_code=False))
    assert theirs.questions == ours.questions == 40
    assert theirs.values == pytest.approx(ours.values, abs=1e-12)
    assert theirs.errors == pytest.approx(ours.errors, abs=1e-9)
