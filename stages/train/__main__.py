"""Runs the stage `train`: python -m stages.train"""

from pathlib import Path

from stages import entry
from stages.train.nodes import follow, follows
from stages.train.stage import run

if __name__ == "__main__":
    if follows(Path.cwd()):
        entry.main(follow, publishes=False)
    else:
        entry.main(run)
