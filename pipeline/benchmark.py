"""The command `millrace benchmark`: zero-shot multiple choice on an exported folder.

    {"question": "Sugar is", "choices": ["sweet", "sour"], "answer": 0}

Each choice is charged for its tokens behind the question and a space: log p("·sweet" | "Sugar is"). The largest sum
wins (`acc`), or the largest sum a character (`acc_norm`) or a byte (`acc_bytes`), since long answers have more to
lose. These are the names and the numbers of lm-evaluation-harness, which runs here as well: `--task FILE.yaml` gives
its tasks, from files of one's own, with the extra `eval`.

A question begins as the folder's tokenizer begins a text, as in the harness: an export of Millrace puts end-of-text in
front, as before every document in training.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from stages.errors import BadInput

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TOKENS_AT_ONCE = 8192
MEASURES = ("acc", "acc_norm", "acc_bytes")


class Question(NamedTuple):
    """A text, what may follow it, and the number of the right choice, from 0."""

    text: str
    choices: list[str]
    answer: int


@dataclasses.dataclass(frozen=True)
class Result:
    """Shares of questions answered rightly, and their standard errors, by measure."""

    name: str
    questions: int
    values: dict[str, float]
    errors: dict[str, float]


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument(
    "files", nargs=-1, type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="[FILE.jsonl]..."
)
@click.option("--task", "tasks", multiple=True, type=click.Path(exists=True, dir_okay=False, path_type=Path),
              metavar="FILE.yaml", help="A task of lm-evaluation-harness; needs the extra `eval`.")  # fmt: skip
@click.option("--limit", type=click.IntRange(1), help="So many first questions of each.")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, or auto.")
@click.option("--trust-code", is_flag=True, help="Run the model's own Python file, if the folder has one.")
@click.option("--json", "as_json", is_flag=True, help="JSON instead of a table.")
def benchmark(
    folder: Path, files: tuple[Path, ...], tasks: tuple[Path, ...], limit: int | None, device: str, trust_code: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """Answers multiple-choice questions with a model in FOLDER, as `transformers` loads it.

    A line of a file is {"question": "..", "choices": ["..", ".."], "answer": 0}; "context" serves for "question", and
    the answer may be the text of a choice. The model is scored without examples.

    \b
      millrace benchmark data/export/hf questions.jsonl
      millrace benchmark data/export/hf --task sugar.yaml    the same through lm-evaluation-harness
    """
    if not files and not tasks:
        raise BadInput("nothing to answer; name a file of questions, or a task with --task")
    asked = {file: read_questions(file)[:limit] for file in files}
    if not (folder / "config.json").is_file():
        raise BadInput(f"{folder}: has no config.json; name the folder of an export, such as data/export/hf")
    results = []
    if asked:
        model, tokenizer = load(folder, device, trust_code)
        results = [score(file.stem, questions, model, tokenizer) for file, questions in asked.items()]
    if tasks:
        results += run_harness(folder, tasks, limit, device, trust_code)
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(result) for result in results], indent=2))
        return
    width = max(len(result.name) for result in results)
    for result in results:
        shown = (f"{name} {value:.4f} +- {result.errors.get(name, 0):.4f}" for name, value in result.values.items())
        click.echo(f"{result.name:{width}}  {result.questions:>6,} questions  {'  '.join(shown)}")


def read_questions(file: Path) -> list[Question]:
    """Raises BadInput with file and line where one is no question."""
    questions = []
    for number, line in enumerate(file.read_bytes().split(b"\n"), start=1):  # texts may hold other ends of lines
        if line.strip():
            questions.append(_question(line, f"{file}:{number}"))
    if not questions:
        raise BadInput(f"{file}: has no question")
    return questions


def _question(line: bytes, place: str) -> Question:
    try:
        record = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise BadInput(f"{place}: byte {error.start} of the line is not UTF-8; save the file as UTF-8") from None
    except ValueError as error:
        raise BadInput(f"{place}: not JSON ({error})") from None
    if not isinstance(record, dict):
        raise BadInput(f"{place}: not an object with question, choices and answer")
    text, choices, answer = record.get("question", record.get("context")), record.get("choices"), record.get("answer")
    if not isinstance(text, str) or not text.strip():
        raise BadInput(f"{place}: `question` (or `context`) must be a text")
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(c, str) and c for c in choices):
        raise BadInput(f"{place}: `choices` must be a list of at least two texts")
    if isinstance(answer, str) and answer in choices:
        answer = choices.index(answer)
    if isinstance(answer, bool) or not isinstance(answer, int) or not 0 <= answer < len(choices):
        raise BadInput(f"{place}: `answer` must be a number from 0 to {len(choices) - 1}, or the text of a choice")
    return Question(text, choices, answer)


def load(folder: Path, device: str, trust_code: bool) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model in fp32, and its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    chosen = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=trust_code)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_code)
    except (OSError, ValueError) as error:
        hint = "; --trust-code runs the folder's own code" if "trust_remote_code" in str(error) else ""
        raise BadInput(f"{folder}: transformers cannot load it: {str(error).splitlines()[0]}{hint}") from None
    torch.nn.Module.to(model, chosen)  # transformers' own `to` has lost its types
    return model.eval(), tokenizer


def score(
    name: str, questions: Sequence[Question], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> Result:
    """Answers all questions."""
    asked = [encode(question.text, f" {choice}", tokenizer) for question in questions for choice in question.choices]
    sums = iter(log_likelihoods(asked, model))
    right: dict[str, list[bool]] = {measure: [] for measure in MEASURES}
    for question in questions:
        of_choices = [next(sums) for _ in question.choices]
        for measure, lengths in zip(
            MEASURES,
            ([1] * len(of_choices), map(len, question.choices), (len(c.encode()) for c in question.choices)),
            strict=True,
        ):
            shares = [nats / length for nats, length in zip(of_choices, lengths, strict=True)]
            right[measure].append(shares.index(max(shares)) == question.answer)
    n = len(questions)
    values = {measure: sum(answers) / n for measure, answers in right.items()}
    errors = {measure: math.sqrt(p * (1 - p) / (n - 1)) if n > 1 else 0.0 for measure, p in values.items()}
    return Result(name, n, values, errors)


def encode(context: str, continuation: str, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], int]:
    """The tokens of both, and how many of them are the continuation's. Spaces at the end of the context go to it:
    tokens begin with their spaces."""
    bare = context.rstrip()
    whole = tokenizer.encode(context + continuation)
    return whole, len(whole) - len(tokenizer.encode(bare))


def log_likelihoods(asked: Sequence[tuple[list[int], int]], model: PreTrainedModel) -> list[float]:
    """Log-probability of the last tokens of each sequence given those before; long ones lose their beginning."""
    import torch

    longest = getattr(model.config, "max_position_embeddings", None) or 1 << 30
    order = sorted(range(len(asked)), key=lambda i: -len(asked[i][0]))
    found = [0.0] * len(asked)
    while order:
        length = min(len(asked[order[0]][0]), longest + 1)
        some, order = order[: max(1, TOKENS_AT_ONCE // length)], order[max(1, TOKENS_AT_ONCE // length) :]
        sequences = [torch.tensor(asked[i][0][-(longest + 1) :]) for i in some]
        padded = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True).to(model.device)
        with torch.inference_mode():
            log_p = _log_p(model, padded)
        for row, i in enumerate(some):
            last = len(sequences[row]) - 1
            found[i] = float(log_p[row, last - min(asked[i][1], last) : last].sum())
    return found


def _log_p(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    """Log-probability of each token but the first given those before it, [B, T-1]; padding stands behind."""
    logits = model(ids[:, :-1]).logits.float()
    return logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]


def run_harness(folder: Path, tasks: Sequence[Path], limit: int | None, device: str, trust_code: bool) -> list[Result]:
    """Runs local task files through lm-evaluation-harness."""
    try:
        from lm_eval import simple_evaluate
        from lm_eval.tasks import TaskManager
    except ImportError:
        raise BadInput("--task needs lm-evaluation-harness; install the extra: pip install 'millrace[eval]'") from None
    import torch
    from ruamel.yaml import YAML

    names = [_task_name(YAML(typ="safe").load(path.read_text(encoding="utf-8")), path) for path in tasks]
    folders = sorted({str(path.resolve().parent) for path in tasks})
    chosen = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    found = simple_evaluate(
        model="hf",
        model_args={"pretrained": str(folder), "dtype": "float32", "trust_remote_code": trust_code},
        tasks=list(names),
        task_manager=TaskManager(include_path=folders, include_defaults=False),
        batch_size=8,
        device=chosen,
        limit=limit,
        bootstrap_iters=100,
    )
    return [_result(name, found) for name in names]


def _task_name(task: Any, path: Path) -> str:
    if not isinstance(task, dict) or not isinstance(task.get("task"), str):
        raise BadInput(f"{path}: has no `task`, the name of the task")
    return task["task"]


def _result(name: str, found: dict[str, Any]) -> Result:
    """The measures of a task, without the filter that the harness writes behind each."""
    numbers = {key.split(",")[0]: value for key, value in found["results"][name].items() if isinstance(value, float)}
    values = {key: value for key, value in numbers.items() if not key.endswith("_stderr")}
    errors = {key.removesuffix("_stderr"): value for key, value in numbers.items() if key.endswith("_stderr")}
    return Result(name, found["n-samples"][name]["effective"], values, errors)
