"""Tokens that our best optimizer and schedule need to reach the loss of a tuned AdamW with a cosine.

    python -m benchmarks.quality data OUT --texts FILE..      rows of tokens for all runs, by the real stages
    python -m benchmarks.quality run OUT RUNS.jsonl           all trainings: one GPU or several, two processes each
    python -m benchmarks.quality run OUT RUNS.jsonl --only adamw:weight_decay=1    the family's best, with this change
    python -m benchmarks.quality report RUNS.jsonl            tables
    python -m benchmarks.quality toy                          all of it on a CPU, in two minutes

A better optimizer is worth the tokens that it saves. So the question is not which loss is lower at the end, but at
how many tokens the candidate is where the baseline ends:

    AdamW + cosine, 12M tokens            loss 3.10
    Muon + linear, 6M and 7.2M tokens     loss 3.14 and 3.08     ->  3.10 at 6.8M: 0.57 of the tokens

Each budget is a training of its own, whose schedule ends there: a point half way down a longer schedule would be
judged before its learning rate has fallen. Figures between budgets are read off on a straight line over log tokens.

What keeps the comparison fair. The baseline is tuned as long as the candidate: a grid over the two knobs that matter
most, then one knob at a time from the best point, then what helped together; every family gets the same number of
trainings at the same cost. Rates are tuned at the full budget alone, so a candidate's shorter budgets use rates that
were chosen for another length: that counts against it. The chosen settings of both are trained with three seeds, each
another draw of weights and another order of rows. No run reads a row twice, documents of validation and test share
no near duplicate with training (dedup removes those), and the same loss is told on test, by which nothing was chosen.

plan.py has what is trained and in which order, runs.py how; data.py writes the rows, report.py the tables.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from benchmarks.quality.data import write_data
from benchmarks.quality.plan import FULL, TOY
from benchmarks.quality.report import print_report
from benchmarks.quality.runs import run_plan


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.quality", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    data = commands.add_parser("data", help="write the rows of tokens")
    data.add_argument("out", type=Path)
    data.add_argument("--texts", type=Path, nargs="*", default=[], help="files beside the text of installed packages")
    run = commands.add_parser("run", help="train; what RUNS.jsonl already has is not trained again")
    run.add_argument("data", type=Path)
    run.add_argument("runs", type=Path)
    run.add_argument("--deadline", type=float, default=3600.0, help="stop after so many seconds")
    run.add_argument("--per-gpu", type=int, default=2, help="processes on each GPU")
    run.add_argument("--rate", type=float, default=4e5, help="tokens/s of a process, for the first estimate of time")
    run.add_argument(
        "--only",
        nargs="+",
        default=[],
        metavar="FAMILY:KEY=VALUE,..",
        help="further points: a family's best with changes",
    )
    report = commands.add_parser("report", help="print the tables")
    report.add_argument("runs", type=Path)
    commands.add_parser("toy", help="data, run and report in small")
    return parser.parse_args()


def main() -> None:
    options = parse()
    if options.command == "data":
        write_data(options.out, options.texts, FULL)
    elif options.command == "run":
        run_plan(options.data, options.runs, FULL, options.deadline, options.per_gpu, options.rate, options.only)
    elif options.command == "report":
        print_report(options.runs)
    else:
        with tempfile.TemporaryDirectory() as folder:
            data, runs = Path(folder) / "data", Path(folder) / "runs.jsonl"
            write_data(data, [], TOY)
            run_plan(data, runs, TOY, 90.0, 1, 1e4)
            print_report(runs)


if __name__ == "__main__":
    main()
