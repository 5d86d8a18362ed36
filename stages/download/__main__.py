"""Runs the stage `download`: python -m stages.download"""

from stages import entry, memory

memory.use_system_allocator()
from stages.download.stage import run  # noqa: E402  (imports Arrow)

if __name__ == "__main__":
    entry.main(run)
