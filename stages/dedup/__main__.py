"""Runs the stage `dedup`: python -m stages.dedup"""

from stages import entry
from stages.dedup.stage import run

if __name__ == "__main__":
    entry.main(run)
