"""Runs the stage `pack`: python -m stages.pack"""

from stages import entry
from stages.pack.stage import run

if __name__ == "__main__":
    entry.main(run)
