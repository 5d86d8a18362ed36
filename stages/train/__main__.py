"""Runs the stage `train`: python -m stages.train"""

from stages import entry
from stages.train.stage import run

if __name__ == "__main__":
    entry.main(run)
