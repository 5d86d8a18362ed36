"""Runs the stage `code`: python -m stages.code"""

from stages import entry
from stages.code.stage import run

if __name__ == "__main__":
    entry.main(run)
