"""What a file of safetensors holds, by its header, and whether its values are numbers; all tensors of a folder.

    8 bytes     N, the length of the header, little-endian
    N bytes     {"wte": {"dtype": "F32", "shape": [61, 32], "data_offsets": [0, 7808]}, ..}
    the rest    the tensors, end to end in the order of their offsets

Example: `wte` of 61 x 32 values of 4 bytes has 7,808 bytes, so that the next tensor begins at 7,808. A value is no
number where all bits of its exponent are set, which is one mask on whole words: NaN and infinity alike.
Torch is needed by `read_tensors` alone.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from stages.errors import BadInput

if TYPE_CHECKING:
    import torch

AGAIN = "download or export it again"
WEIGHTS = "model.safetensors"
SHARDS = f"{WEIGHTS}.index.json"  # says which of several files holds which tensor
LARGEST_HEADER = 100_000_000  # bytes; the limit of safetensors itself
# The bytes of a floating value, and the bits of its exponent.
EXPONENTS = {"F64": (8, 0x7FF << 52), "F32": (4, 0xFF << 23), "F16": (2, 0x1F << 10), "BF16": (2, 0xFF << 7)}
CHUNK = 1 << 20  # bytes that stay in the cache of a processor


UMASK = os.umask(0o022)  # to ask for it is to set it, and this is done before there are threads
os.umask(UMASK)


def readable(path: Path) -> None:
    """Gives a file the mode of any new file: safetensors writes it for its owner alone."""
    path.chmod(0o666 & ~UMASK)


class Entry(NamedTuple):
    """One tensor: where its bytes lie in the file, and what they are."""

    dtype: str
    shape: tuple[int, ...]
    first: int
    end: int

    @property
    def is_floating(self) -> bool:
        return self.dtype in EXPONENTS


def read_header(path: Path) -> dict[str, Entry]:
    """The tensors of a file, by name.

    Raises:
        BadInput: it is cut off, or its header does not describe it.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, LARGEST_HEADER):
            raise BadInput(f"{path.name}: is cut off or no file of safetensors; {AGAIN}")
        try:
            header = json.loads(file.read(length))
            entries = {n: _entry(e, 8 + length) for n, e in header.items() if n != "__metadata__"}
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise BadInput(f"{path.name}: its header is damaged; {AGAIN}") from None
    if not entries:
        raise BadInput(f"{path.name}: holds no tensor; {AGAIN}")
    end = 8 + length
    for name, entry in sorted(entries.items(), key=lambda item: item[1].first):
        wanted = math.prod(entry.shape) * EXPONENTS[entry.dtype][0] if entry.is_floating else None
        if entry.first != end or wanted not in (None, entry.end - entry.first):
            raise BadInput(
                f"{path.name}: {name}, {entry.dtype} {list(entry.shape)}, lies at bytes {entry.first:,} to "
                f"{entry.end:,}, which is not its size or not where the one before it ends; {AGAIN}"
            )
        end = entry.end
    if size != end:
        raise BadInput(f"{path.name}: has {size:,} bytes of {end:,}; {AGAIN}")
    return entries


def _entry(described: Mapping[str, Any], base: int) -> Entry:
    """One line of a header. Raises ValueError where it is none."""
    first, end = described["data_offsets"]
    shape, dtype = described["shape"], described["dtype"]
    numbers = [first, end, *shape]
    if not isinstance(dtype, str) or not all(type(number) is int and number >= 0 for number in numbers) or end < first:
        raise ValueError(described)
    return Entry(dtype, tuple(shape), base + first, base + end)


def first_not_finite(path: Path, entries: Mapping[str, Entry]) -> str | None:
    """The name of the first floating tensor that holds NaN or infinity."""
    import numpy as np  # only here: the stage `code` loads nothing that is slow to load

    data = np.memmap(path, dtype=np.uint8, mode="r")
    for name, entry in sorted(entries.items(), key=lambda item: item[1].first):
        if entry.is_floating:
            width, exponent = EXPONENTS[entry.dtype]
            kind = np.dtype(f"u{width}")
            mask = kind.type(exponent)
            for start in range(entry.first, entry.end, CHUNK):
                words = data[start : min(start + CHUNK, entry.end)].view(kind)
                if ((words & mask) == mask).any():
                    return name
    return None


def has_weights(folder: Path) -> bool:
    return (folder / WEIGHTS).is_file() or (folder / SHARDS).is_file()


def read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a folder, in one file of weights or several.

    Raises:
        BadInput: a file that is missing, cut off or damaged; it is named.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    names = [WEIGHTS] if (folder / WEIGHTS).is_file() or not (folder / SHARDS).is_file() else _shards_of(folder)
    tensors: dict[str, torch.Tensor] = {}
    for name in names:
        if not (folder / name).is_file():
            raise BadInput(f"{name} is not there; weights in other forms than safetensors are not read")
        try:
            tensors |= load_file(folder / name)
        except (SafetensorError, OSError) as error:
            raise BadInput(f"{name}: {error}; {AGAIN}") from None
    return tensors


def _shards_of(folder: Path) -> list[str]:
    """The files that the index names, each within the folder."""
    try:
        places = json.loads((folder / SHARDS).read_text(encoding="utf-8"))["weight_map"]
        return sorted({Path(name).name for name in places.values()})
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise BadInput(f"{SHARDS}: is damaged; {AGAIN}") from None
