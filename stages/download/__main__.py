"""Runs the stage `download`: python -m stages.download"""

from stages import entry
from stages.download.stage import run

if __name__ == "__main__":
    entry.main(run)
