"""Runs the stage `clean`: python -m stages.clean"""

from stages import entry
from stages.clean.stage import run

if __name__ == "__main__":
    entry.main(run)
