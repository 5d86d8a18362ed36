"""What a decoder remembers of the tokens that it has read, one cache per layer.

    full     keys and values of every token, appended
    window   keys and values of the sinks and of the last `window` tokens, in a ring: slot of token t is
             t for a sink, else sinks + (t - sinks) mod window
    latent   MLA's compressed vector and rotated key of every token, appended

Example with window 3 and 1 sink: after 6 tokens the slots hold tokens 0, 4, 5, 3. A chunk of several
tokens first looks at the ring as it was together with the chunk, and is written afterwards; a single token
is written first, since what it overwrites is out of its reach.

The tokens of a row come in order and without gaps, so how many have been read says what every slot holds:
nothing else is kept, and a row is free for another sequence as soon as that one begins at 0. Rows of a batch
may have read different numbers of tokens. A token of segment -1 is padding: it is not kept and nobody sees it.

A `part` of a cache is some of its rows, and of an appended one the first slots alone; it shares the memory. So a
batch reads no further than its longest row, and a row that is being filled needs no others.

Shapes: B sequences, T new tokens, S slots, H query heads, K key heads, G query heads per key head, D width.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from model.context import EMPTY, EVERYTHING, Context, Places, Reach, visible


@dataclasses.dataclass(frozen=True)
class Slots:
    """How many there are and which token goes where: a ring where there is a window, else one after the other."""

    size: int
    window: int = 0
    sinks: int = 0

    @classmethod
    def of(cls, capacity: int, reach: Reach) -> Slots:
        """A ring, if it is smaller than room for `capacity` tokens."""
        if 0 < reach.window < capacity - reach.sinks:
            return cls(reach.sinks + reach.window, *reach)
        return cls(capacity)

    def slot(self, position: Tensor) -> Tensor:
        if not self.window:
            return position
        return torch.where(position < self.sinks, position, self.sinks + (position - self.sinks) % self.window)

    def held(self, read_B: Tensor) -> Tensor:
        """The token in each slot of a ring after so many tokens, EMPTY where there is none yet, [B, S]."""
        slot, read_B1 = torch.arange(self.size, device=read_B.device), read_B[:, None]
        latest = read_B1 - 1 - (read_B1 - 1 - slot) % self.window
        latest = torch.where(slot < self.sinks, torch.where(slot < read_B1, slot, EMPTY), latest)
        return torch.where(latest >= slot, latest, EMPTY)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What new tokens do to caches with equal slots: made by the first layer, used by all (`Context.plans`).

    Attributes:
        rows, columns, slots: of the tokens that are to be kept, each [n]; columns None: one token in every row.
        mask: what each new token sees, bool [B, 1, T, S], or [B, 1, T, S + T] where `beside`.
        beside: the tokens look at the slots as they were and at each other, and are written afterwards.
    """

    rows: Tensor
    columns: Tensor | None
    slots: Tensor
    mask: Tensor
    beside: bool = False


def plan_of(slots: Slots, context: Context) -> Plan:
    """The plan of this forward pass for caches with these slots."""
    if slots not in context.plans:
        context.plans[slots] = _plan(slots, context.places)
    return context.plans[slots]


def _plan(slots: Slots, places: Places) -> Plan:
    position, segments = places.positions, places.segments
    before = torch.arange(slots.size, device=position.device) <= position[:, None, :, None]  # or at the very place
    if segments is None and position.shape[1] == 1:  # a ring is filled from the left as well
        rows = torch.arange(len(position), device=position.device)
        return Plan(rows, None, slots.slot(position[:, 0]), before)
    kept = position >= 0 if segments is None else segments >= 0
    if not slots.window:
        if int(position.max()) >= slots.size:
            raise ValueError(f"position {int(position.max())} in a cache for {slots.size} tokens")
        rows, columns = kept.nonzero(as_tuple=True)
        return Plan(rows, columns, position[rows, columns], before)
    held = Places(torch.cat((slots.held(position[:, 0]), position.where(kept, EMPTY)), dim=1))
    mask = visible(Places(position), held, Reach(slots.window, slots.sinks))
    mask = mask | ~mask.any(dim=-1, keepdim=True)  # padding sees anything
    newest = position.where(kept, EMPTY).amax(dim=1, keepdim=True)
    kept = kept & ((position < slots.sinks) | (position > newest - slots.window))  # of two for one slot, the later
    rows, columns = kept.nonzero(as_tuple=True)
    return Plan(rows, columns, slots.slot(position[rows, columns]), mask, beside=True)


class KeyValueCache:
    """Keys and values, appended or in a ring."""

    def __init__(self, slots: Slots, keys_BKSD: Tensor, values_BKSD: Tensor):
        self.slots, self.keys, self.values = slots, keys_BKSD, values_BKSD

    @classmethod
    def empty(cls, batch: int, n_kv_heads: int, widths: tuple[int, int], slots: Slots, like: Tensor) -> KeyValueCache:
        """`widths`: of a key and of a value."""
        keys, values = (like.new_zeros(batch, n_kv_heads, slots.size, width) for width in widths)
        return cls(slots, keys, values)

    @property
    def n_bytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes

    def part(self, first: int, end: int, length: int) -> KeyValueCache:
        """Rows `first` to `end`, and of appended slots the first `length`; they share this memory."""
        slots = self.slots if self.slots.window else Slots(length)
        return KeyValueCache(slots, *(kept[first:end, :, : slots.size] for kept in (self.keys, self.values)))

    def copy_row(self, source: int, target: int, length: int) -> None:
        """Gives the row `target` the first `length` slots of the row `source`."""
        for kept in (self.keys, self.values):
            kept[target, :, :length] = kept[source, :, :length]

    def attend(self, q_BHTD: Tensor, k_BKTD: Tensor, v_BKTD: Tensor, context: Context, scale: float) -> Tensor:
        """Attention of the new tokens to what is remembered and to each other; they are remembered from now on."""
        q_BHTD, k_BKTD, v_BKTD = (new.to(self.keys.dtype) for new in (q_BHTD, k_BKTD, v_BKTD))
        plan = plan_of(self.slots, context)
        keys, values = self.keys, self.values
        if plan.beside:
            keys, values = torch.cat((keys, k_BKTD), dim=2), torch.cat((values, v_BKTD), dim=2)
        self._write(k_BKTD, v_BKTD, plan)
        if plan.columns is None:  # heads that share keys become queries of one head: no key is copied
            q_BKGD = q_BHTD.unflatten(1, (keys.shape[1], -1)).squeeze(3)
            y_BKGD = scaled_dot_product_attention(q_BKGD, keys, values, plan.mask, scale=scale)
            return y_BKGD.flatten(1, 2)[:, :, None]
        grouped = q_BHTD.shape[1] != keys.shape[1]
        return scaled_dot_product_attention(q_BHTD, keys, values, plan.mask, scale=scale, enable_gqa=grouped)

    def _write(self, k_BKTD: Tensor, v_BKTD: Tensor, plan: Plan) -> None:
        for kept, new_BKTD in ((self.keys, k_BKTD), (self.values, v_BKTD)):
            new = new_BKTD[:, :, 0] if plan.columns is None else new_BKTD[plan.rows, :, plan.columns]
            kept[plan.rows, :, plan.slots] = new.to(kept.dtype)


class LatentCache:
    """MLA's latents and rotated keys, appended."""

    def __init__(self, slots: Slots, latents_BSL: Tensor, rotated_BSR: Tensor):
        self.slots, self.latents, self.rotated = slots, latents_BSL, rotated_BSR

    @classmethod
    def empty(cls, batch: int, rank: int, rope: int, capacity: int, like: Tensor) -> LatentCache:
        slots = Slots.of(capacity, EVERYTHING)
        return cls(slots, like.new_zeros(batch, capacity, rank), like.new_zeros(batch, capacity, rope))

    @property
    def n_bytes(self) -> int:
        return self.latents.nbytes + self.rotated.nbytes

    def part(self, first: int, end: int, length: int) -> LatentCache:
        """Rows `first` to `end` and the first `length` slots; they share this memory."""
        return LatentCache(Slots(length), self.latents[first:end, :length], self.rotated[first:end, :length])

    def copy_row(self, source: int, target: int, length: int) -> None:
        """Gives the row `target` the first `length` slots of the row `source`."""
        for kept in (self.latents, self.rotated):
            kept[target, :length] = kept[source, :length]

    def append(self, c_BTL: Tensor, k_pe_BTR: Tensor, context: Context) -> tuple[Tensor, Tensor, Tensor]:
        """All latents and rotated keys, the new ones included, and which of them each new token sees."""
        plan = plan_of(self.slots, context)
        for kept, new_BTX in ((self.latents, c_BTL), (self.rotated, k_pe_BTR)):
            new = new_BTX[:, 0] if plan.columns is None else new_BTX[plan.rows, plan.columns]
            kept[plan.rows, plan.slots] = new.to(kept.dtype)
        return self.latents, self.rotated, plan.mask


LayerCache = KeyValueCache | LatentCache
