"""Runs the stage `tokenizer`: python -m stages.tokenizer"""

from stages import entry, memory

memory.use_system_allocator()
from stages.tokenizer.stage import run  # noqa: E402  (imports Arrow)

if __name__ == "__main__":
    entry.main(run)
