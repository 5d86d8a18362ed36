"""Texts that the model writes at each validation, to read in training.log and in monitor/samples.jsonl.

`execution.sample_prompts` are continued by `sample_tokens` tokens at temperature 0.8 within the most probable
95%. Every prompt draws from a generator of its own with the same seed each time, so two validations
differ by what was learned between them, and training by nothing: it has no random state to disturb.

    {"step": 200, "prompt": "Returns the number of", "text": " elements in the array .."}
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import torch

from model.sampling import Sampling, generate
from stages.errors import BadInput
from stages.files import file_sha256
from stages.train.journal import Journal, keep_lines
from stages.train.run import TrainingRun
from stages.train.step import Hook, StepResult
from stages.vocabulary import load_tokenizer, roles_of

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SAMPLING = Sampling(temperature=0.8, top_p=0.95)


class Samples(Hook):
    """Comes after validation, which waits for the device already. All ranks draw, as a sharded model needs them."""

    def __init__(self, journal: Journal):
        self.journal = journal

    def start(self, run: TrainingRun) -> None:
        self.prompts = run.execution.sample_prompts
        self.path = run.folder / "monitor" / "samples.jsonl"
        if run.ranks.first:
            self.path.parent.mkdir(exist_ok=True)
            keep_lines(self.path, run.state.step, lambda line: str(json.loads(line)["step"]))
        if self.prompts:
            self.tokenizer, self.end_of_text = tokenizer_of(run)

    def after_step(self, run: TrainingRun, result: StepResult) -> None:
        if not self.prompts or run.state.validation_loss is None:
            return
        step = run.state.step
        for prompt, text in zip(self.prompts, self.continued(run), strict=True):
            record = json.dumps({"step": step, "prompt": prompt, "text": text}, ensure_ascii=False)
            if run.ranks.first:
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(record + "\n")
            self.journal.write(f"step {step} SAMPLE {json.dumps(prompt + text, ensure_ascii=False)}")

    def continued(self, run: TrainingRun) -> list[str]:
        """What the model makes of the prompts. Compiled blocks would compile anew for every length, so they do not."""
        encoded = [
            [self.end_of_text, *self.tokenizer.encode(prompt, add_special_tokens=False).ids] for prompt in self.prompts
        ]
        run.model.eval()
        with run.published_weights(), run.autocast(), torch.compiler.set_stance("force_eager"):
            drawn = generate(
                run.model, encoded, run.execution.sample_tokens, run.train_rows.context_length, self.end_of_text,
                SAMPLING, run.params.seed,
            )  # fmt: skip
        run.model.train()
        return [self.tokenizer.decode(tokens, skip_special_tokens=False) for tokens in drawn]


def tokenizer_of(run: TrainingRun) -> tuple[Tokenizer, int]:
    """The tokenizer of the rows, and its token between documents.

    Raises:
        BadInput: data/tokenizer holds none, or another one.
    """
    path = run.job.root / "data/tokenizer/tokenizer.json"
    mend = "run `dvc repro pack`, or set it to []"
    if not path.exists():
        raise BadInput(f"execution.sample_prompts: {path} is not there; {mend}")
    if file_sha256(path) != run.train_rows.index["tokenizer_sha256"]:
        raise BadInput(f"execution.sample_prompts: {path} is not the tokenizer of data/pack; {mend}")
    tokenizer, end_of_text = load_tokenizer(path), roles_of(path).end_of_text
    number = tokenizer.token_to_id(end_of_text)
    assert number is not None, "load_tokenizer has found it"
    return tokenizer, number
