"""Runs the stage `evaluate`: python -m stages.evaluate"""

from stages import entry
from stages.evaluate.stage import run

if __name__ == "__main__":
    entry.main(run)
