"""Opens the export as a user would, with transformers alone, and compares it with our own decoder.

Run by proof.py in a process of its own (python -m stages.export.check), so that what transformers
sees is the folder and nothing that Millrace has in memory. On real test documents, each alone:

    weights     every tensor of the architecture is in the file, and none besides
    tokenizer   a text gives the ids that our tokenizer gives, behind <|endoftext|>, and comes back
    logits      the largest difference at any position and token, of transformers and of onnxruntime
    perplexity  that transformers computes by itself from `labels`
    greedy      `generate` with a padded batch of beginnings; each token must be our most probable one. The same by
                onnxruntime, token by token through its caches (check_onnx.py)

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
import math
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.signals import die_with_parent
from stages.tokens import TokenRows

if TYPE_CHECKING:
    import torch

PROMPT_TOKENS = 16


@dataclasses.dataclass(frozen=True)
class Request:
    """What to compare; paths as text, since it travels as JSON.

    Attributes:
        folder: of transformers. onnx: the ONNX file, or empty.
        checkpoint, tokenizer, rows: our own side, and the test split.
        documents: how many test documents. new_tokens: how many tokens to generate from each.
        max_difference: of logits. threads: of torch; 0 = its default.
    """

    folder: str
    onnx: str
    checkpoint: str
    tokenizer: str
    rows: str
    documents: int
    new_tokens: int
    max_difference: float
    threads: int


def check(request: Request) -> dict[str, Any]:
    """{documents, tokens, greedy_tokens, difference, perplexity, problems} and with ONNX {onnx_difference,
    onnx_greedy_tokens}: `problems` is empty if all is equal."""
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
    problems = [f"hf: {kind}: {', '.join(map(str, names))}" for kind, names in loading.items() if names]
    problems += compare_tokenizers(tokenizer, request.tokenizer, documents)
    with torch.no_grad():
        wanted = [ours(torch.tensor([ids]))[0] for ids in inputs]
        figures, wrong = compare_transformers(ours, theirs, tokenizer, inputs, wanted, rows.context_length, request)
        problems += wrong
        if request.onnx:
            found, wrong = compare_onnx(ours, tokenizer, inputs, wanted, rows.context_length, request)
            figures |= found
            problems += wrong
    counts = {"documents": len(inputs), "tokens": sum(map(len, inputs))}
    return {**counts, **figures, "problems": problems}


def compare_transformers(
    ours: torch.nn.Module, theirs: Any, tokenizer: Any, inputs: list[list[int]], wanted: list[torch.Tensor],
    context_length: int, request: Request,
) -> tuple[dict[str, Any], list[str]]:  # fmt: skip
    """Figures and problems of the folder `hf`."""
    import torch

    found = [theirs(torch.tensor([ids])).logits[0] for ids in inputs]
    difference, problems = compare_logits("hf", wanted, found, request.max_difference)
    perplexity, wrong = compare_perplexity(theirs, inputs, wanted, request.max_difference)
    prompts, new_tokens = prompts_of(inputs, context_length, request.new_tokens)
    batch = tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt")
    written = theirs.generate(**batch, do_sample=False, max_new_tokens=new_tokens)[:, batch["input_ids"].shape[1] :]
    greedy_tokens, differs = compare_greedy(
        "hf", ours, prompts, written.tolist(), tokenizer.eos_token_id, request.max_difference
    )
    figures = {"difference": difference, "perplexity": perplexity, "greedy_tokens": greedy_tokens}
    return figures, [*problems, *wrong, *differs]


def compare_onnx(
    ours: torch.nn.Module, tokenizer: Any, inputs: list[list[int]], wanted: list[torch.Tensor], context_length: int,
    request: Request,
) -> tuple[dict[str, Any], list[str]]:  # fmt: skip
    """Figures and problems of the folder `onnx`."""
    import torch

    from stages.export.check_onnx import OnnxDecoder

    theirs = OnnxDecoder(Path(request.onnx), request.threads)
    found = [torch.from_numpy(theirs.logits([ids])[0]) for ids in inputs]
    difference, problems = compare_logits("onnx", wanted, found, request.max_difference)
    prompts, new_tokens = prompts_of(inputs, context_length, request.new_tokens)
    written = theirs.generate(prompts, new_tokens, tokenizer.eos_token_id)
    greedy_tokens, differs = compare_greedy(
        "onnx", ours, prompts, written, tokenizer.eos_token_id, request.max_difference
    )
    return {"onnx_difference": difference, "onnx_greedy_tokens": greedy_tokens}, [*problems, *differs]


def prompts_of(inputs: list[list[int]], context_length: int, new_tokens: int) -> tuple[list[list[int]], int]:
    """The beginnings that are continued, of several lengths so that a batch is padded, and by how many tokens."""
    prompt_tokens = min(PROMPT_TOKENS, max(1, context_length // 2))
    prompts = [ids[: max(1, prompt_tokens - number % 4)] for number, ids in enumerate(inputs)]
    return prompts, min(new_tokens, context_length - prompt_tokens)


def compare_tokenizers(theirs: Any, our_file: str, documents: list[list[int]]) -> list[str]:
    """Problems with the tokenizer of the export, on the text of the documents."""
    from tokenizers import Tokenizer

    ours = Tokenizer.from_file(our_file)
    for number, document in enumerate(documents):
        text = ours.decode(document)
        ids = theirs(text)["input_ids"]
        if ids != [theirs.bos_token_id, *ours.encode(text, add_special_tokens=False).ids]:
            return [f"hf: the exported tokenizer gives other ids than ours for test document {number}"]
        if theirs.decode(ids, skip_special_tokens=True) != text:
            return [f"hf: the exported tokenizer does not give back the text of test document {number}"]
    return []


def compare_logits(
    name: str, wanted: list[torch.Tensor], found: list[torch.Tensor], most: float
) -> tuple[float, list[str]]:
    """The largest difference of logits, and where it is if it is too large."""
    largest, place = 0.0, ""
    for number, (ours_TV, theirs_TV) in enumerate(zip(wanted, found, strict=True)):
        difference_T = (ours_TV - theirs_TV).abs().amax(dim=-1)
        difference = float(difference_T.max())
        if not math.isfinite(difference):
            return difference, [f"{name}: logits of test document {number} are not finite"]
        if difference > largest:
            largest, place = difference, f"test document {number} at token {int(difference_T.argmax())}"
    if largest <= most:
        return largest, []
    return largest, [f"{name}: logits differ by {largest:.2g}, over {most:.2g}, in {place}"]


def compare_perplexity(
    theirs: Any, inputs: list[list[int]], wanted: list[torch.Tensor], most: float
) -> tuple[float, list[str]]:
    """The perplexity that transformers says, over all documents, and the problem if ours is another one."""
    import torch

    batches = [torch.tensor([ids]) for ids in inputs if len(ids) > 1]
    logits = [logits_TV for ids, logits_TV in zip(inputs, wanted, strict=True) if len(ids) > 1]
    n_labels = sum(batch.shape[1] - 1 for batch in batches)
    said = sum(float(theirs(batch, labels=batch).loss) * (batch.shape[1] - 1) for batch in batches) / n_labels
    ours = sum(
        float(torch.nn.functional.cross_entropy(logits_TV[:-1], batch[0, 1:], reduction="sum"))
        for logits_TV, batch in zip(logits, batches, strict=True)
    )
    perplexity, expected = math.exp(said), math.exp(ours / n_labels)
    wrong = f"hf: perplexity is {perplexity:.6g}, ours {expected:.6g}, on {len(inputs)} test documents"
    return perplexity, [] if abs(said - ours / n_labels) <= 2 * most else [wrong]  # a logit and the sum of all move


def compare_greedy(
    name: str, ours: torch.nn.Module, prompts: list[list[int]], written: list[list[int]], end_of_text: int, most: float
) -> tuple[int, list[str]]:
    """The number of tokens that were written as ours would be, and the problem with them, if any."""
    import torch

    compared = 0
    for number, (prompt, row) in enumerate(zip(prompts, written, strict=True)):
        end = row.index(end_of_text) + 1 if end_of_text in row else len(row)
        logits_NV = ours(torch.tensor([[*prompt, *row[:end]]]))[0, len(prompt) - 1 : -1]
        chosen_N = logits_NV.gather(1, torch.tensor(row[:end])[:, None])[:, 0]
        wrong_N = chosen_N < logits_NV.amax(dim=-1) - most
        if wrong_N.any():
            place = f"test document {number} differs at token {int(wrong_N.int().argmax())}"
            return compared, [f"{name}: greedy text of {place}"]
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
