"""Runs the stage `dedup`: python -m stages.dedup"""

from stages import memory

memory.collect_rarely()
memory.use_system_allocator()
memory.keep_freed()
from stages import entry  # noqa: E402
from stages.dedup.stage import run  # noqa: E402  (imports Arrow)

if __name__ == "__main__":
    entry.main(run)
