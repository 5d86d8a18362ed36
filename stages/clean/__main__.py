"""Runs the stage `clean`: python -m stages.clean"""

from stages import entry, memory

memory.use_system_allocator()
from stages.clean.stage import run  # noqa: E402  (imports Arrow)

if __name__ == "__main__":
    entry.main(run)
