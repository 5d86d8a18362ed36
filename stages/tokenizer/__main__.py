"""Runs the stage `tokenizer`: python -m stages.tokenizer"""

from stages import entry
from stages.tokenizer.stage import run

if __name__ == "__main__":
    entry.main(run)
