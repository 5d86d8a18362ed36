"""What a decoder remembers of the tokens that it has read, one cache per layer.

    full     keys and values of every token, appended
    window   keys and values of the sinks and of the last `window` tokens, in a ring: slot of token t is
             t for a sink, else sinks + (t - sinks) mod window
    latent   MLA's compressed vector and rotated key of every token, appended

Example with window 3 and 1 sink: after 6 tokens the slots hold tokens 0, 4, 5, 3. A chunk of several
tokens first looks at the ring as it was together with the chunk, and is written afterwards.

Sequences of a batch may have read different numbers of tokens: slots are found by position, and a
slot's position says what it holds (EMPTY: nothing). A token of segment -1 is padding and is not kept.

Shapes: B sequences, T new tokens, S slots, K key heads, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.context import EMPTY, EVERYTHING, Places, Reach, visible


class Slots:
    """Positions of what a cache holds, and where new tokens go."""

    def __init__(self, batch: int, capacity: int, reach: Reach, device: torch.device):
        self.reach = reach
        self.ring = 0 < reach.window < capacity - reach.sinks
        slots = reach.sinks + reach.window if self.ring else capacity
        self.capacity = capacity
        self.positions = torch.full((batch, slots), EMPTY, dtype=torch.int64, device=device)

    def of(self, places: Places) -> tuple[Tensor, Tensor, Tensor]:
        """Rows, columns and slots of the new tokens that are to be kept, each [n]."""
        position = places.positions
        kept = position >= 0 if places.segments is None else (position >= 0) & (places.segments >= 0)
        slot = position
        if self.ring:
            window, sinks = self.reach
            slot = torch.where(position < sinks, position, sinks + (position - sinks) % window)
            newest = torch.where(kept, position, EMPTY).amax(dim=1, keepdim=True)
            kept = kept & ((position < sinks) | (position > newest - window))  # of two for one slot, the later
        elif int(position.max()) >= self.capacity:
            raise ValueError(f"position {int(position.max())} in a cache for {self.capacity} tokens")
        row, column = kept.nonzero(as_tuple=True)
        return row, column, slot[row, column]


class KeyValueCache:
    """Keys and values, appended or in a ring."""

    def __init__(
        self, batch: int, n_kv_heads: int, key_width: int, value_width: int, capacity: int, reach: Reach, like: Tensor
    ):
        self.slots = Slots(batch, capacity, reach, like.device)
        n = self.slots.positions.shape[1]
        self.keys = like.new_zeros(batch, n_kv_heads, n, key_width)
        self.values = like.new_zeros(batch, n_kv_heads, n, value_width)

    @property
    def n_bytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes

    def attend(
        self, q_BHTD: Tensor, k_BKTD: Tensor, v_BKTD: Tensor, places: Places, reach: Reach, scale: float
    ) -> Tensor:
        """Attention of the new tokens to what is remembered and to each other; then they are remembered."""
        keys, values = torch.cat((self.keys, k_BKTD), dim=2), torch.cat((self.values, v_BKTD), dim=2)
        new = places.positions if places.segments is None else places.positions.where(places.segments >= 0, EMPTY)
        held = Places(torch.cat((self.slots.positions, new), dim=1))
        mask = visible(Places(places.positions), held, reach)
        mask = mask | ~mask.any(dim=-1, keepdim=True)  # padding sees anything, and nobody sees it
        y_BHTD = torch.nn.functional.scaled_dot_product_attention(
            q_BHTD, keys, values, attn_mask=mask, scale=scale, enable_gqa=q_BHTD.shape[1] != keys.shape[1]
        )
        row, column, slot = self.slots.of(places)
        self.keys[row, :, slot] = k_BKTD[row, :, column].to(self.keys.dtype)
        self.values[row, :, slot] = v_BKTD[row, :, column].to(self.values.dtype)
        self.slots.positions[row, slot] = places.positions[row, column]
        return y_BHTD


class LatentCache:
    """MLA's latents and rotated keys, appended."""

    def __init__(self, batch: int, rank: int, rope: int, capacity: int, like: Tensor):
        self.slots = Slots(batch, capacity, EVERYTHING, like.device)
        self.latents = like.new_zeros(batch, capacity, rank)
        self.rotated = like.new_zeros(batch, capacity, rope)

    @property
    def n_bytes(self) -> int:
        return self.latents.nbytes + self.rotated.nbytes

    def append(self, c_BTL: Tensor, k_pe_BTR: Tensor, places: Places) -> tuple[Tensor, Tensor, Places]:
        """All latents and rotated keys, the new ones included, and where they stand."""
        row, column, slot = self.slots.of(places)
        self.latents[row, slot] = c_BTL[row, column].to(self.latents.dtype)
        self.rotated[row, slot] = k_pe_BTR[row, column].to(self.rotated.dtype)
        self.slots.positions[row, slot] = places.positions[row, column]
        return self.latents, self.rotated, Places(self.slots.positions)


LayerCache = KeyValueCache | LatentCache
