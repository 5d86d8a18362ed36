"""Opens an export to generate text with it: the decoder, its tokenizer, its chat template. Without transformers.

    open_export("data/export")                 the folder hf in what the stage `export` wrote
    open_export("data/export/int8")                matrices in 8 or 4 bits (stages/quantised.py)
    open_export("path/to/folder")              any folder of an architecture of docs/export.md
    open_export("models:/millrace@champion")   a registered version, from where this workspace registers

Weights are read from safetensors alone, never from a pickle, and no code of the folder is run: an export with
our own code is read by the code that runs here. Encoders are refused by name.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.config import ModelConfig
from stages.chat import CHATML, CHATML_TOKENS, Marks, NoTemplate, chat_texts, encoded, rendered, written
from stages.errors import BadInput
from stages.first_weights import architecture_in, our_tensors, read_object, vocabulary_in
from stages.quantised import open_quantised
from stages.weights_file import WEIGHTS, has_weights, read_tensors

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer

    from model.decoder import Decoder

LENGTH_KEYS = ("context_length", "max_position_embeddings", "n_positions", "n_ctx")  # what configs call it
TRACKING = "MLFLOW_TRACKING_URI"
SERVED_AS = {"export": "millrace", "hf": "millrace", **{v: f"millrace-{v}" for v in ("int8", "int8_dynamic", "int4")}}


@dataclasses.dataclass(frozen=True)
class Exported:
    """What it takes to continue text.

    Attributes:
        name: what it is called where several are told apart.
        tokenizer: takes special tokens written out in a text for ordinary text: who sends it cannot play another role.
        markup: the same tokenizer, which takes them for what they are.
        ends: ids of tokens that end a text.
        begin, end: the text of the token that begins one and of the one that ends it, or empty.
        template: of a chat, or empty.
        context_length: the most tokens of prompt and continuation together.
    """

    name: str
    model: Decoder
    tokenizer: Tokenizer
    markup: Tokenizer
    ends: frozenset[int]
    begin: str
    template: str
    context_length: int
    end: str = ""

    @property
    def device(self) -> str:
        return self.model.embedding.weight.device.type

    def encode(self, text: str) -> list[int]:
        """Ids of a text, behind the token that begins one as the tokenizer has it."""
        return encoded(self.tokenizer, text, add_special_tokens=True).ids

    @functools.cached_property
    def most_characters(self) -> int:
        """A text of more cannot fit the context, whatever its tokens are."""
        if self.tokenizer.normalizer is not None:  # which may shorten a text
            return sys.maxsize
        return self.context_length * max(map(len, self.tokenizer.get_vocab()))

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Ids of a conversation, up to where the model's answer begins.

        Raises:
            NoTemplate: there is no template, or it refuses these messages.
        """
        if not self.template:
            raise NoTemplate(f"{self.name} has no chat template and no {CHATML_TOKENS[0]}; use text completions")
        marks = Marks(self.markup)
        told = self._rendered(
            [{**message, "content": marks.instead_of_markup(message["content"])} for message in messages]
        )
        alone = self._rendered([{**message, "content": marks.instead(message["content"])} for message in messages])
        ids = marks.encode(told, self.tokenizer)
        safe = marks.encode(alone, self.tokenizer)
        if marks.special(ids) != marks.special(safe):  # the template makes markup of texts, or looks into them
            ids = safe
        if self.template != CHATML:
            return ids
        begun = self.tokenizer.encode("").ids  # it was trained behind that, which our ChatML does not say
        return [*begun, *ids]

    def _rendered(self, messages: Sequence[Mapping[str, str]]) -> str:
        try:
            return rendered(self.template, messages, self.begin, self.end)
        except NoTemplate as error:
            raise NoTemplate(f"{self.name}: {error}") from None


def open_export(place: str | Path, device: str = "cpu", dtype: torch.dtype | None = None) -> Exported:
    """The model of an export in eval mode, and what belongs to it.

    Args:
        dtype: of the weights; by default fp32 on a CPU and bf16 on a GPU.

    Raises:
        BadInput: nothing is there, it is no decoder, or a file is missing or damaged.
    """
    folder = folder_of(place)
    settings = read_object(folder / "config.json")
    refuse_others(folder, settings)
    context_length = next((settings[key] for key in LENGTH_KEYS if isinstance(settings.get(key), int)), 0)
    if context_length < 1:
        raise BadInput(f"{folder / 'config.json'}: none of {', '.join(LENGTH_KEYS)}; set the context length")
    if "quantization" in settings:
        model = open_quantised(folder, device)
    else:
        model = open_plain(folder, settings, context_length, device, dtype)
    name = str(place) if str(place).startswith("models:/") else Path(place).resolve().name
    tokenizer, markup = read_tokenizer(folder), read_tokenizer(folder)
    tokenizer.encode_special_tokens = True
    begin, end, template = chat_texts(folder, tokenizer)
    return Exported(
        name=SERVED_AS.get(name, name),
        model=model,
        tokenizer=tokenizer,
        markup=markup,
        ends=ends_of(folder, settings, tokenizer),
        begin=begin,
        template=template,
        context_length=context_length,
        end=end,
    )


def open_plain(
    folder: Path, settings: Mapping[str, Any], length: int, device: str, dtype: torch.dtype | None
) -> Decoder:
    """A decoder whose weights are held as they are; in fp32 on a CPU in blocks (model/reordered.py)."""
    import torch

    from model.decoder import Decoder
    from model.reordered import AVAILABLE, ReorderedDecoder

    try:
        config, tensors = fused(architecture_in(settings), our_tensors(settings, read_tensors(folder)))
    except BadInput as error:
        raise BadInput(f"{folder}: {error}") from None
    dtype = dtype or (torch.float32 if device == "cpu" else torch.bfloat16)
    if AVAILABLE and device == "cpu" and dtype == torch.float32:
        weights = {name: tensors.pop(name).float() for name in list(tensors)}
        return ReorderedDecoder(config, vocabulary_in(settings), length, weights)
    with torch.device("meta"):
        model = Decoder(config, vocabulary_in(settings), length)
    model.load_state_dict(tensors, assign=True)
    model.requires_grad_(False)
    return model.to(device=device, dtype=dtype).eval()


def folder_of(place: str | Path) -> Path:
    """The folder with config.json, fetched from MLflow where a registered model is named."""
    registered = str(place).startswith("models:/")
    folder = fetched(str(place)) if registered else Path(place).expanduser()
    for found in (folder, folder / "hf"):
        if (found / "config.json").is_file():
            return found
    raise BadInput(
        f"{place}: no config.json there or in its hf/; name an export (hf, int8, int8_dynamic or int4; onnx is for "
        "onnxruntime and gguf for llama.cpp), or run `dvc repro export`"
    )


def fetched(name: str) -> Path:
    """A registered version, from where the stage export of this workspace registers; outside of one MLFLOW_TRACKING_URI
    says where that is. MLflow left to itself would make an empty mlflow.db in the current folder and look there."""
    from stages.tracking import hush

    uri = registry_uri(name)
    hush()
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    before = os.environ.get(TRACKING)
    os.environ[TRACKING] = uri  # an alias is looked up there and nowhere else, whatever the call is given
    try:
        return Path(download_artifacts(artifact_uri=name))
    except (MlflowException, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BadInput(f"{name}: MLflow at {uri} does not give it: {reason}") from None
    finally:
        os.environ.pop(TRACKING) if before is None else os.environ.update({TRACKING: before})


def registry_uri(name: str) -> str:
    from stages.entry import Job
    from stages.execution import Execution
    from stages.params import ParamsFile
    from stages.root import find_root
    from stages.tracking import store_address

    try:
        root = find_root()
    except BadInput:
        if uri := os.environ.get(TRACKING):
            return uri
        raise BadInput(f"{name}: run this in a clone of the repository, or set {TRACKING}") from None
    uri, _ = store_address(Job("export", root, ParamsFile(root / "params.yaml").section("execution", Execution)))
    database = Path(uri.removeprefix("sqlite:///"))
    if uri.startswith("sqlite:///") and not database.exists():
        raise BadInput(
            f"{name}: no model is registered yet, {database} is not there; `dvc repro` registers one, or set "
            "execution.tracking_uri to where yours are"
        )
    return uri


def refuse_others(folder: Path, settings: Mapping[str, Any]) -> None:
    """What is no decoder, or has its weights in another form."""
    classes = settings.get("architectures") or []
    wrong = [
        name for name in classes if not str(name).endswith("ForCausalLM") and not str(name).endswith("LMHeadModel")
    ]
    if settings.get("is_encoder_decoder") or wrong:
        named = wrong[0] if wrong else settings.get("model_type")
        raise BadInput(f"{folder}: {named} is no decoder; text is generated by one, such as Qwen3ForCausalLM")
    if settings.get("quantization_config"):
        raise BadInput(f"{folder}: its weights are quantised by another program; name the folder hf beside it")
    if not has_weights(folder):
        raise BadInput(f"{folder}: no {WEIGHTS}; weights in other forms (pickle) are not read, convert them")


def fused(config: ModelConfig, tensors: dict[str, torch.Tensor]) -> tuple[ModelConfig, dict[str, torch.Tensor]]:
    """The same decoder with one matrix for queries, keys and values: fewer and larger products."""
    import torch

    if config.fused_qkv or set(config.kinds) - {"full", "swa"}:
        return config, tensors
    for name in [name for name in tensors if ".attention.query." in name]:
        parts = [tensors.pop(name.replace(".query.", f".{part}.")) for part in ("query", "key", "value")]
        tensors[name.replace(".query.", ".query_key_value.")] = torch.cat(parts)
    return dataclasses.replace(config, fused_qkv=True), tensors


def read_tokenizer(folder: Path) -> Tokenizer:
    """tokenizer.json, which encodes all of a text."""
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # of no class of its own
        raise BadInput(f"{path}: {error}; export it again") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def ends_of(folder: Path, settings: Mapping[str, Any], tokenizer: Tokenizer) -> frozenset[int]:
    """Tokens after which nothing follows: those of the folder's files, and ChatML's."""
    ends: set[int] = set()
    path = folder / "generation_config.json"
    for source in (settings, read_object(path) if path.is_file() else {}):
        found = source.get("eos_token_id")
        for one in found if isinstance(found, list) else [] if found is None else [found]:
            number = tokenizer.token_to_id(one) if isinstance(one, str) else one
            if not isinstance(number, int) or isinstance(number, bool):
                raise BadInput(f"{folder}: eos_token_id {one!r} is no token's id; correct it")
            ends.add(number)
    path = folder / "tokenizer_config.json"
    named = written(read_object(path).get("eos_token")) if path.is_file() else ""
    end = tokenizer.token_to_id(named) if named else None
    ends.update([] if end is None else [end])
    closing = tokenizer.token_to_id(CHATML_TOKENS[1])
    return frozenset(ends if closing is None else {*ends, closing})
