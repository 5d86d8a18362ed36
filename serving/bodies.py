"""The bodies of requests, as OpenAI's API has them: what they may hold, and what is refused rather than ignored.

Sampling knows more than OpenAI's: top_k, min_p, repetition_penalty (send them as `extra_body` of the client). A key
that nobody knows is an error, so that a misspelt one does not go unnoticed; keys that change nothing here (`user`,
`metadata`, `store`) are taken and passed over. Numbers are numbers: true, which Python counts as 1, is refused, and
"1" too.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StrictBool, StrictFloat, StrictInt

from model.sampling import Sampling

MOST_CHOICES = 64  # prompts times n, of one request
MOST_STOPS = 16


def refuse_set(value: Any) -> Any:
    """For keys that we do not have: null, and what is empty or off, is the same as leaving them out."""
    if value not in (None, False, [], {}, "", 0, "none"):
        raise ValueError("is not supported by this server; leave it out")
    return None


def refuse_formats(value: Any) -> Any:
    if value is not None and value != {"type": "text"}:
        raise ValueError(
            'is not supported by this server: the model is not held to a format; leave it out, or {"type": "text"}'
        )
    return None


def listed(value: Any) -> Any:
    return [] if value is None else [value] if isinstance(value, str) else value


def whole(text: str) -> str:
    """JSON can name half of a character, which no text holds."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("holds half of a surrogate pair, which is no character") from None
    return text


Text = Annotated[str, AfterValidator(whole)]
Unsupported = Annotated[None, BeforeValidator(refuse_set)]
Format = Annotated[None, BeforeValidator(refuse_formats)]
Stops = Annotated[
    list[Annotated[Text, Field(min_length=1, max_length=1000)]], Field(max_length=MOST_STOPS), BeforeValidator(listed)
]
Seed = Annotated[StrictInt, Field(ge=-(2**63), lt=2**63)]
Ids = list[Annotated[StrictInt, Field(ge=0)]]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class StreamOptions(Strict):
    include_usage: StrictBool = False
    include_obfuscation: StrictBool = False  # takes no effect


class Body(Strict):
    """What both kinds of completion have."""

    model: Text = ""
    max_tokens: Annotated[StrictInt, Field(ge=1)] | None = None
    temperature: Annotated[StrictFloat, Field(ge=0, le=2)] | None = None
    top_p: Annotated[StrictFloat, Field(ge=0, le=1)] | None = None  # 0 leaves the most probable token
    top_k: Annotated[StrictInt, Field(ge=0)] | None = None
    min_p: Annotated[StrictFloat, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[StrictFloat, Field(ge=0.01, le=10)] | None = None
    presence_penalty: Annotated[StrictFloat, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[StrictFloat, Field(ge=-2, le=2)] | None = None
    seed: Seed | None = None
    stop: Stops = []
    n: Annotated[StrictInt, Field(ge=1, le=MOST_CHOICES)] | None = 1
    stream: StrictBool | None = False
    stream_options: StreamOptions | None = None
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: StrictBool | None = None
    logit_bias: Unsupported = None

    def sampling(self) -> Sampling:
        """Where the body says nothing: temperature 1 and nothing cut off, as OpenAI's API has it."""
        names = (
            "temperature",
            "top_p",
            "top_k",
            "min_p",
            "repetition_penalty",
            "presence_penalty",
            "frequency_penalty",
        )
        return Sampling(**{name: value for name in names if (value := getattr(self, name)) is not None})

    @property
    def wants_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage


class CompletionBody(Body):
    prompt: Text | Ids | list[Text] | list[Ids]
    max_tokens: Annotated[StrictInt, Field(ge=0)] | None = None  # 0, with echo and logprobs: the prompt is scored
    logprobs: Annotated[StrictInt, Field(ge=0, le=20)] | None = None
    echo: StrictBool | None = False
    suffix: Unsupported = None
    best_of: Annotated[StrictInt, Field(ge=1)] | None = None

    def prompts(self) -> list[str] | list[list[int]]:
        if isinstance(self.prompt, str):
            return [self.prompt]
        if self.prompt and isinstance(self.prompt[0], int):
            return [self.prompt]
        return self.prompt  # type: ignore[return-value]


class TextPart(Strict):
    type: Literal["text"]
    text: Text


def joined(content: str | list[TextPart]) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)


class Message(Strict):
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[Text | list[TextPart], AfterValidator(joined)]
    name: str | None = None
    refusal: Unsupported = None  # these stand in an answer that a client sends back, as null
    annotations: Unsupported = None
    audio: Unsupported = None
    function_call: Unsupported = None
    tool_calls: Unsupported = None


class ChatBody(Body):
    messages: Annotated[list[Message], Field(min_length=1, max_length=1000)]
    max_completion_tokens: Annotated[StrictInt, Field(ge=1)] | None = None
    logprobs: StrictBool | None = False
    top_logprobs: Annotated[StrictInt, Field(ge=0, le=20)] | None = None
    response_format: Format = None
    tools: Unsupported = None
    tool_choice: Unsupported = None
    functions: Unsupported = None
    function_call: Unsupported = None
    audio: Unsupported = None
    modalities: Annotated[list[Literal["text"]], Field()] | None = None
    reasoning_effort: Unsupported = None
    parallel_tool_calls: StrictBool | None = None


def unknown_key(key: str, place: Sequence[int | str], path: str) -> str:
    """What is said of a key that nobody knows: the key it is nearest to, if there is one."""
    body = ChatBody if path.endswith("/chat/completions") else CompletionBody
    within: dict[int | str, type[BaseModel]] = {"messages": Message, "stream_options": StreamOptions}
    known = (within.get(place[1], body) if len(place) > 2 else body).model_fields
    near = difflib.get_close_matches(key, known, n=1)
    return "is not known" + (f"; did you mean {near[0]}?" if near else "; leave it out")
