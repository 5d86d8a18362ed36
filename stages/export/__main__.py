"""Runs the stage `export`: python -m stages.export"""

from stages import entry
from stages.export.stage import run

if __name__ == "__main__":
    entry.main(run)
