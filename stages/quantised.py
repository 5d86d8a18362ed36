"""Folders of quantised models: data/export/int8, int8_dynamic and int4.

    model.safetensors   by the names of Decoder.state_dict(); of a packed matrix three tensors
    config.json         as of a checkpoint, and `quantization`, which says how each matrix is packed
    tokenizer files     those of data/export/hf

    blocks.0.mlp.up.weight          codes: int8 [N, K], or uint8 [N, K / 2] with two codes a byte
    blocks.0.mlp.up.weight.scale    fp32 [N]; of int4 bf16 [N, G]
    blocks.0.mlp.up.weight.zero     of int4 alone, bf16 [N, G]

model/quantised.py says what the codes stand for. int8_dynamic holds the weights of int8; who opens it rounds the inputs
of each product to int8 as well. A model of 124M takes 499 MB in fp32, about 125 MB in int8.

    model = open_quantised(Path("data/export/int8"))      # a Decoder
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.checkpoint import refused_by_system
from stages.errors import BadInput
from stages.files import write_json
from stages.first_weights import architecture_in, own_size, read_object
from stages.weights_file import readable

if TYPE_CHECKING:
    import torch

    from model.decoder import Decoder
    from model.quantised import Packed

WEIGHTS, AGAIN = "model.safetensors", "run `dvc checkout`, or `dvc repro export`"
DYNAMIC = "int8_dynamic"
METHODS = {"int8": 8, DYNAMIC: 8, "int4": 4}  # and their bits
SCHEME = "rounded to nearest; int8 symmetric by output, int4 with a zero by group"


def write_quantised(
    folder: Path, method: str, config: Mapping[str, Any], packed: Mapping[str, Packed], plain: Mapping[str, Any]
) -> None:
    """Writes model.safetensors and config.json.

    Args:
        config: config.json of the checkpoint. packed, plain: as model.quantised.PackedDecoder takes them.
    """
    from safetensors.torch import save_file

    parts = {name: part._asdict().items() for name, part in packed.items()}
    tensors = {
        name if part == "codes" else f"{name}.{part}": tensor
        for name, items in parts.items()
        for part, tensor in items
        if tensor is not None
    }
    path = folder / WEIGHTS
    with refused_by_system(path):
        save_file({name: tensor.contiguous() for name, tensor in {**plain, **tensors}.items()}, path)
        readable(path)
    groups = {name: part.codes.shape[-1] * 2 // part.scale.shape[-1] for name, part in packed.items() if part.bits == 4}
    described = {
        name: {"bits": part.bits, **({"group_size": groups[name]} if name in groups else {})}
        for name, part in packed.items()
    }
    quantization = {
        "method": method,
        "scheme": f"{'weights, and inputs by row,' if method == DYNAMIC else 'weights alone,'} {SCHEME}",
        "matrices": described,
    }
    write_json(folder / "config.json", {"model_type": "millrace", **config, "quantization": quantization})


def open_quantised(folder: Path, device: str = "cpu") -> Decoder:
    """The model of such a folder, in eval mode.

    Raises:
        BadInput: a file that is missing, damaged, or does not fit config.json.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from model.quantised import PackedDecoder
    from stages.int8_kernel import one_row

    for name in ("config.json", WEIGHTS):
        if not (folder / name).is_file():
            raise BadInput(f"{folder / name} is not there; {AGAIN}")
    try:
        settings = read_object(folder / "config.json")
        architecture = architecture_in(settings)
        sizes = own_size(settings, "vocab_size"), own_size(settings, "context_length")
        tensors = load_file(folder / WEIGHTS)
        packed = _packed_in(settings, tensors)
        dynamic = settings["quantization"].get("method") == DYNAMIC
        return PackedDecoder(architecture, *sizes, packed, tensors, dynamic, one_row).to(device)
    except SafetensorError as error:
        raise BadInput(f"{folder / WEIGHTS}: {error}; {AGAIN}") from None
    except BadInput as error:
        raise BadInput(f"{folder}: {error}") from None
    except (KeyError, RuntimeError, ValueError) as error:
        raise BadInput(f"{folder / WEIGHTS} does not fit config.json: {error}; {AGAIN}") from None


def _packed_in(settings: Mapping[str, Any], tensors: dict[str, torch.Tensor]) -> dict[str, Packed]:
    """Takes the packed matrices out of `tensors`."""
    from model.quantised import Packed

    described = settings.get("quantization")
    if not isinstance(described, Mapping) or not isinstance(described.get("matrices"), Mapping):
        raise BadInput("config.json: holds no `quantization`; name data/export/int8 or data/export/int4")
    packed = {}
    for name, how in described["matrices"].items():
        parts = [name, f"{name}.scale", *([f"{name}.zero"] if how.get("bits") == 4 else [])]
        if absent := [part for part in parts if part not in tensors]:
            raise BadInput(f"{WEIGHTS}: {absent[0]} is missing; {AGAIN}")
        packed[name] = Packed(*(tensors.pop(part) for part in parts))
    return packed
