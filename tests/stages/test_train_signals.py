"""A signal that reaches one rank is known to all."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from torch import distributed

from stages.train.ranks import Ranks


@pytest.mark.parametrize("flags", [(False, False, False), (False, True, False), (True, True, True)])
def test_a_flag_of_one_rank_is_known_to_all(flags):
    """The ranks are threads here; the group is the one by which processors talk beside NCCL."""
    store, world = distributed.HashStore(), len(flags)

    def rank(number: int) -> bool:
        group = distributed.ProcessGroupGloo(store, number, world)
        return Ranks(number, world, "cuda", processors=group).any(flags[number])

    with ThreadPoolExecutor(world) as threads:
        assert list(threads.map(rank, range(world))) == [any(flags)] * world


def test_one_rank_asks_nobody():
    assert Ranks(0, 1, "cuda").any(True) and not Ranks(0, 1, "cuda").any(False)
