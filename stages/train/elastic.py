"""torchrun, whose words go to a file: what a user has to know of a training is the one line that the stage ends with.

    python -m stages.train.elastic FOLDER [options of torchrun] -m stages.train.worker FOLDER/job.json

By itself torchrun ends with a traceback of its own and a table of exit codes, whatever a rank has said before. Here
both stand in FOLDER/torchrun.log, and FOLDER/ends.json says how ranks ended: {"1": {"pid": 412, "exit_code": -9}}.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from stages.files import write_json

LOG = "torchrun.log"
ENDS = "ends.json"


def main(folder: Path, arguments: list[str]) -> int:
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    handler = logging.FileHandler(folder / LOG, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    for name in ("torch.distributed.elastic", "torch.distributed.run"):
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        logger.propagate = False
    try:
        run.run(run.parse_args(arguments))
    except ChildFailedError as error:
        logger.error(error)
        ends = {str(rank): {"pid": end.pid, "exit_code": end.exitcode} for rank, end in error.failures.items()}
        write_json(folder / ENDS, ends)
        return 1
    except SignalException as error:
        logger.warning(error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
