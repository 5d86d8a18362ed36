"""Opens the export as a user would, with transformers alone, and compares it with our own decoder.

Run by proof.py in a process of its own (python -m stages.export.check), so that what transformers
sees is the folder and nothing that Millrace has in memory. On real test documents, each alone:

    weights     every tensor of the architecture is in the file, and none besides
    tokenizer   a text gives the ids that our tokenizer gives, behind <|endoftext|>, and comes back
    logits      the largest difference at any position and token
    greedy      `generate` with a padded batch of beginnings; each token must be our most probable one

The last is one forward pass of ours over what transformers wrote: if token 1 is our choice, and token
2 is our choice after it, and so on, then our own greedy text is the same. Two tokens of ours that lie
closer than the allowed difference count as equal. A request comes in on standard input as JSON, after
the imports, which take seconds; the figures go to standard output.
"""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import json
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.entry import die_with_parent
from stages.tokens import TokenRows

if TYPE_CHECKING:
    import torch

PROMPT_TOKENS = 16


@dataclasses.dataclass(frozen=True)
class Request:
    """What to compare; paths as text, since it travels as JSON.

    Attributes:
        folder: the export. checkpoint, tokenizer, rows: our own side, and the test split.
        documents: how many test documents. new_tokens: how many tokens to generate from each.
        max_difference: of logits. threads: of torch; 0 = its default.
    """

    folder: str
    checkpoint: str
    tokenizer: str
    rows: str
    documents: int
    new_tokens: int
    max_difference: float
    threads: int


def check(request: Request) -> dict[str, Any]:
    """{difference, documents, tokens, greedy_tokens, problems}: `problems` is empty if all is equal."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    from stages.checkpoint import load_model

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if request.threads:
        torch.set_num_threads(request.threads)
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        request.folder, dtype=torch.float32, output_loading_info=True, local_files_only=True, trust_remote_code=True
    )
    theirs, loading = loaded
    tokenizer = AutoTokenizer.from_pretrained(request.folder, local_files_only=True, trust_remote_code=True)
    ours = load_model(Path(request.checkpoint))
    rows = TokenRows(Path(request.rows))
    documents = [document.tolist() for document in itertools.islice(rows.documents(), request.documents)]
    inputs = [[tokenizer.bos_token_id, *document][: rows.context_length] for document in documents]
    problems = [f"{kind}: {', '.join(map(str, names))}" for kind, names in loading.items() if names]
    problems += compare_tokenizers(tokenizer, request.tokenizer, documents)
    with torch.no_grad():
        difference, place = compare_logits(ours, theirs, inputs)
        if not difference <= request.max_difference:
            problems.append(f"logits differ by {difference:.2g}, over {request.max_difference:.2g}, in {place}")
        greedy_tokens, wrong = compare_greedy(ours, theirs, tokenizer, inputs, rows.context_length, request)
    return {
        "difference": difference,
        "documents": len(inputs),
        "tokens": sum(map(len, inputs)),
        "greedy_tokens": greedy_tokens,
        "problems": problems + wrong,
    }


def compare_tokenizers(theirs: Any, our_file: str, documents: list[list[int]]) -> list[str]:
    """Problems with the tokenizer of the export, on the text of the documents."""
    from tokenizers import Tokenizer

    ours = Tokenizer.from_file(our_file)
    for number, document in enumerate(documents):
        text = ours.decode(document)
        ids = theirs(text)["input_ids"]
        if ids != [theirs.bos_token_id, *ours.encode(text, add_special_tokens=False).ids]:
            return [f"the exported tokenizer gives other ids than ours for test document {number}"]
        if theirs.decode(ids, skip_special_tokens=True) != text:
            return [f"the exported tokenizer does not give back the text of test document {number}"]
    return []


def compare_logits(ours: torch.nn.Module, theirs: torch.nn.Module, inputs: list[list[int]]) -> tuple[float, str]:
    """The largest difference of logits, and where it is."""
    import torch

    largest, place = 0.0, ""
    for number, ids in enumerate(inputs):
        input_BT = torch.tensor([ids])
        difference_T = (ours(input_BT) - theirs(input_BT).logits)[0].abs().amax(dim=-1)
        difference = float(difference_T.max())
        if not difference <= largest:  # also where it is not a number
            largest, place = difference, f"test document {number} at token {int(difference_T.argmax())}"
    return largest, place


def compare_greedy(
    ours: torch.nn.Module, theirs: Any, tokenizer: Any, inputs: list[list[int]], context_length: int, request: Request
) -> tuple[int, list[str]]:
    """The number of tokens that transformers generated, and the problem with them, if any."""
    import torch

    prompt_tokens = min(PROMPT_TOKENS, max(1, context_length // 2))
    new_tokens = min(request.new_tokens, context_length - prompt_tokens)
    prompts = [ids[:prompt_tokens] for ids in inputs]
    batch = tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt")
    written = theirs.generate(**batch, do_sample=False, max_new_tokens=new_tokens)
    compared = 0
    for number, (prompt, row) in enumerate(
        zip(prompts, written[:, batch["input_ids"].shape[1] :].tolist(), strict=True)
    ):
        end = row.index(tokenizer.eos_token_id) + 1 if tokenizer.eos_token_id in row else len(row)
        logits_NV = ours(torch.tensor([[*prompt, *row[:end]]]))[0, len(prompt) - 1 : -1]
        chosen_N = logits_NV.gather(1, torch.tensor(row[:end])[:, None])[:, 0]
        wrong_N = chosen_N < logits_NV.amax(dim=-1) - request.max_difference
        if wrong_N.any():
            return compared, [f"greedy text of test document {number} differs at token {int(wrong_N.int().argmax())}"]
        compared += end
    return compared, []


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the stage, which ends this process
    die_with_parent()
    importlib.import_module("transformers.models.auto.modeling_auto")  # while the other side is still writing
    request = sys.stdin.readline()
    if request:
        print(json.dumps(check(Request(**json.loads(request)))))


if __name__ == "__main__":
    main()
