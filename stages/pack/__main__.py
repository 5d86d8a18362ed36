"""Runs the stage `pack`: python -m stages.pack"""

from stages import entry, memory

memory.use_system_allocator()
from stages.pack.stage import run  # noqa: E402  (imports Arrow)

if __name__ == "__main__":
    entry.main(run)
