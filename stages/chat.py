"""Chat templates of exports: what they make of a conversation, and which ids that gives.

A template is Jinja, run in its sandbox: {{ messages[0].content }}. Where a folder has none and the tokenizer
has ChatML's tokens, it is ChatML:

    <|im_start|>user\\nHello<|im_end|>\\n<|im_start|>assistant\\n
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.errors import BadInput
from stages.first_weights import read_object

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

CHATML_TOKENS = ("<|im_start|>", "<|im_end|>")
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class NoTemplate(BadInput):
    """The model cannot chat."""


def chat_texts(folder: Path, tokenizer: Tokenizer) -> tuple[str, str, str]:
    """The tokens that begin and end a text, and the template of a chat; empty where there is none."""
    settings = read_object(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
    begin, end = (written(settings.get(name)) for name in ("bos_token", "eos_token"))
    template = settings.get("chat_template") or ""
    if isinstance(template, list):  # several by name
        template = next((entry["template"] for entry in template if entry.get("name") == "default"), "")
    if (folder / "chat_template.jinja").is_file():
        template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    if not template and all(tokenizer.token_to_id(token) is not None for token in CHATML_TOKENS):
        template = CHATML
    return begin, end, template


def written(token: Any) -> str:
    """The text of a token of tokenizer_config.json: null, the text itself, or an object that holds it."""
    found = token.get("content") if isinstance(token, Mapping) else token
    return found if isinstance(found, str) else ""


def rendered(template: str, messages: Sequence[Mapping[str, str]], begin: str, end: str) -> str:
    """The conversation as the template has it, with what transformers gives to templates.

    Raises:
        NoTemplate: the template refuses these messages.
    """
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = refuse
    environment.filters["tojson"] = lambda value, **_: json.dumps(value, ensure_ascii=False)
    try:
        return environment.from_string(template).render(
            messages=messages, add_generation_prompt=True, bos_token=begin, eos_token=end,
            tools=None, documents=None,
        )  # fmt: skip
    except (TemplateError, TypeError) as error:
        raise NoTemplate(f"the chat template refuses these messages: {error}") from None


class Marks:
    """Keeps apart what a template means as markup and what people wrote that looks like it.

    Text is encoded with the template around it, as in training, so that "\\n" of the template and "\\n" of a text may
    be one token. Only where somebody wrote a special token out, that piece stands in the template as a mark, which
    no text holds, and is encoded by itself, as ordinary text:

        hello<|im_end|>    stands as hello, a mark for <|im_end|>
    """

    def __init__(self, markup: Tokenizer):
        self.markup = markup
        self.ids = {number for number, token in markup.get_added_tokens_decoder().items() if token.special}
        self.texts: list[str] = []
        self.begin = f"\ue000{secrets.randbits(64)}."  # nobody can write it; digits survive `upper` and the like

    def special(self, ids: Sequence[int]) -> list[int]:
        return [number for number in ids if number in self.ids]

    def instead(self, text: str) -> str:
        """A mark for the whole of a text."""
        self.texts.append(text)
        return f"{self.begin}{len(self.texts) - 1}\ue001"

    def instead_of_markup(self, text: str) -> str:
        """The text with marks for special tokens that are written out in it."""
        found, parts, end = encoded(self.markup, text), [], 0
        for number, (start, stop) in zip(found.ids, found.offsets, strict=True):
            if number in self.ids:
                parts += [text[end:start], self.instead(text[start:stop])]
                end = stop
        return "".join([*parts, text[end:]])

    def encode(self, rendered: str, plain: Tokenizer) -> list[int]:
        """Ids of what a template made of texts with marks; `plain` encodes what the marks stand for."""
        ids: list[int] = []
        for number, part in enumerate(re.split(f"{re.escape(self.begin)}(\\d+)\ue001", rendered)):
            tokenizer, text = (plain, self.texts[int(part)]) if number % 2 else (self.markup, part)
            ids += encoded(tokenizer, text).ids
        return ids


def encoded(tokenizer: Tokenizer, text: str, add_special_tokens: bool = False) -> Encoding:
    """As a batch of one: `encode` holds Python's lock, and a server's streams would stand still meanwhile."""
    return tokenizer.encode_batch([text], add_special_tokens=add_special_tokens)[0]
