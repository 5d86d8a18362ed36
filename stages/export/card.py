"""The model card: what the model is, how good, on what text, and where it comes from.

Every figure is read from what the stages wrote; none is typed in. The card holds hashes and no time,
path or commit, so that the folder is the same bytes for the same checkpoint at any commit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from model.config import ModelConfig
from stages.export.own_code import CLASS_NAME

if TYPE_CHECKING:
    from stages.export.variants import Variant

BASELINES = {
    "baseline_token_trigram": "Kneser-Ney trigram over the same tokens",
    "baseline_token_bigram": "Kneser-Ney bigram over the same tokens",
    "baseline_byte_trigram": "Kneser-Ney trigram over bytes",
    "baseline_zstd": "zstd with the training text as dictionary",
}
SAMPLES = 3
LONGEST_SAMPLE = 600  # characters


@dataclasses.dataclass(frozen=True)
class Facts:
    """What the card is made of: JSON as the stages wrote it.

    Attributes:
        class_name: of transformers, or our own. reason: what in the params chose it.
        config, state: of the checkpoint. train, pack, evaluate: metrics.json of these stages.
        samples: samples.json of evaluate. model_sha256: of the exported model.safetensors.
    """

    class_name: str
    reason: str
    config: dict[str, Any]
    state: dict[str, Any]
    train: dict[str, Any]
    pack: dict[str, Any]
    evaluate: dict[str, Any]
    samples: list[dict[str, Any]]
    model_sha256: str


def model_card(name: str, facts: Facts, variants: Sequence[Variant]) -> str:
    """README.md, with the header that the Hugging Face hub reads."""
    parts = [
        HEADER.format(
            name=name, class_name=facts.class_name, origin=origin_of(facts), trust=trust_of(facts), **facts.train
        )
    ]
    parts += [figures(facts), *([quantised(variants)] if variants else []), architecture(facts), training(facts)]
    parts += [samples(facts), provenance(facts)]
    parts.append(LIMITS.format(context_length=facts.config["context_length"]))
    return "\n".join(parts)


HEADER = """---
library_name: transformers
pipeline_tag: text-generation
tags: [millrace]
---
# {name}

A decoder-only language model of {parameters:,} parameters, trained {origin} on {tokens:,} tokens by
Millrace. It continues text; it was not taught to follow instructions.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder"{trust})
model = AutoModelForCausalLM.from_pretrained("path/to/this/folder"{trust})
inputs = tokenizer("Returns the number of", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=40)[0], skip_special_tokens=True))
```

The tokenizer puts `<|endoftext|>` before every text, as in training. The class is `{class_name}`.
"""

LIMITS = """## Limits

- It saw at most {context_length} tokens at a time; beyond that its output means little.
- It knows the kind of text that it was trained on and nothing else, and it states falsehoods fluently.
- It was not tested for bias, safety, or for training text that it repeats word for word.
- No licence is set here: it follows from the training text, which this folder does not contain.
"""


def figures(facts: Facts) -> str:
    """Bits per byte with their interval, beside the baselines."""
    measured = facts.evaluate
    interval = f"{measured['bits_per_byte_low']:.3f} to {measured['bits_per_byte_high']:.3f}"
    rows = [("this model", f"{measured['bits_per_byte']:.3f}", interval)]
    known = [(measured[key], text) for key, text in BASELINES.items() if key in measured]
    rows += [(text, f"{value:.3f}", "") for value, text in sorted(known)]
    return (
        "## Figures\n\n"
        "On test documents that were reserved before anything else was decided, each read alone. Bits per byte\n"
        "do not depend on the tokenizer; lower is better. The baselines were trained on the tokens that the\n"
        "model read.\n\n"
        f"{table(('', 'bits per byte', '95% interval'), rows)}\n"
        f"Perplexity {measured['perplexity']:.2f} per token. The test text is `eval_sha256` "
        f"`{measured['eval_sha256']}`.\n"
    )


def quantised(variants: Sequence[Variant]) -> str:
    """What the variants in the folders beside this one lose, and what they save."""
    rows = [
        (
            f"`{one.name}`", f"{one.n_bytes / 1e6:.1f} MB", f"{one.linear_ratio:.3f}", f"{one.perplexity:.2f}",
            f"{one.ratio:.4f} ({one.low:.4f} to {one.high:.4f})",
        )
        for one in variants
    ]  # fmt: skip
    header = ("folder", "weights", "linear layers, of bf16's bytes", "perplexity", "of that in fp32, 95% interval")
    return (
        "## Quantised variants\n\n"
        "Rounded to nearest: weights alone, in `int8_dynamic` the inputs of each product as well. Measured on rows of\n"
        f"the same test text. `matrices.csv` in each folder says how far every matrix moved.\n\n{table(header, rows)}"
    )


def origin_of(facts: Facts) -> str:
    start = facts.config["model"].get("init_sha256")
    return f"from weights with sha256 `{start[:12]}`" if start else "from nothing"


def trust_of(facts: Facts) -> str:
    return ", trust_remote_code=True" if facts.class_name == CLASS_NAME else ""


def architecture(facts: Facts) -> str:
    config = ModelConfig(**facts.config["model"])
    derived = {"head_dim": config.width_of_head, "intermediate_size": config.width_of_mlp}
    rows = [(f"`{key}`", f"{value}") for key, value in {**facts.config["model"], **derived}.items()]
    rows += [(f"`{key}`", f"{facts.config[key]}") for key in ("vocab_size", "context_length")]
    return (
        f"## Architecture\n\n`{facts.class_name}`, because of {facts.reason}.\n\n{table(('parameter', 'value'), rows)}"
    )


def training(facts: Facts) -> str:
    train, state, pack = facts.train, facts.state, facts.pack
    batch = state["rows_per_step"] * facts.config["context_length"]
    rows = [
        ("steps, tokens trained on", f"{train['steps']:,}, {train['tokens']:,}"),
        ("exported step, the best on validation text", f"{state['step']:,}"),
        ("slots for tokens in a step", f"{batch:,}"),
        ("seed", f"{state['seed']}"),
        ("best validation loss (nats a token)", f"{train['best_validation_loss']:.4f}"),
        ("tokens packed for training, validation, test", packed(pack)),
    ]
    return f"## Training\n\n{table(('', ''), rows)}"


def packed(pack: dict[str, Any]) -> str:
    return ", ".join(f"{pack[f'tokens_{split}']:,}" for split in ("train", "validation", "test"))


def samples(facts: Facts) -> str:
    """The first continuations as evaluate drew them, unchosen."""
    parts = ["## Samples\n\nThe first ones that were drawn, not chosen; the prompt ends at the bar.\n"]
    for sample in facts.samples[:SAMPLES]:
        text = f"{sample['prompt']}|{sample['continuation']}"[:LONGEST_SAMPLE]
        parts.append("\n".join(f"    {line}".rstrip() for line in text.splitlines()) + "\n")
    return "\n".join(parts)


def provenance(facts: Facts) -> str:
    rows = [
        ("model.safetensors, sha256", f"`{facts.model_sha256}`"),
        ("tokenizer.json of the training, sha256", f"`{facts.config['tokenizer_sha256']}`"),
        ("training: params, data and code", f"`{facts.state['run']}`"),
    ]
    return (
        f"## Provenance\n\n{table(('', ''), rows)}\nThe last one is the tag `millrace.run` of the run in MLflow, "
        "which names the commit and the DVC experiment.\n"
    )


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
