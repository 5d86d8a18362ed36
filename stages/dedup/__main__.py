"""Runs the stage `dedup`: python -m stages.dedup"""

from stages import entry, memory

memory.use_system_allocator()
memory.keep_freed()
from stages.dedup.stage import run  # noqa: E402  (imports Arrow)

if __name__ == "__main__":
    entry.main(run)
