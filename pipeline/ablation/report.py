"""The report of an ablation: one page as Markdown and as HTML, and the figures as JSON.

It says first, in a sentence for each variant, whether it differs from the baseline or whether the difference is
noise; then come the figures behind that, the control, speed and memory, the curves, and where each run can be found.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.ablation.grid import Variant, shown
from pipeline.ablation.results import HIGHER_IS_BETTER, QUALITY, SPEED, Metric, Row, Run, metrics_of
from pipeline.ablation.statistics import ALPHA, POWER, smallest_p
from pipeline.page import Curve, Page
from pipeline.revisions import mlflow_runs
from stages.wording import counted


@dataclasses.dataclass(frozen=True)
class Shared:
    """What sharing a stage saved: how often it ran, how often not, and the seconds that one run took on average."""

    stage: str
    ran: int
    taken: int
    seconds: float | None

    @property
    def saved(self) -> float | None:
        return None if self.seconds is None else self.seconds * self.taken


def write(
    folder: Path, title: str, runs: Sequence[Run], every: Sequence[Variant], problems: Mapping[str, str], root: Path
) -> Page:
    """Writes report.md, report.html and report.json; returns the page.

    Args:
        every: the variants of the plan, the baseline first, the control last.
        problems: why experiments failed, by name.
    """
    metrics = metrics_of(runs, every)
    page = Page(title)
    for name, problem in problems.items():
        page.text(f"{name} failed: {problem}")
    for sentence in verdicts(metrics):
        page.text(sentence, strong=True)
    _figures(page, metrics, len({run.planned.seed for run in runs if run.planned.variant == every[0]}))
    _speed(page, metrics)
    page.heading("Loss curves")
    page.chart("training loss, smoothed (nats a token)", "tokens", curves(runs))
    shared = shared_stages(folder / "runs", runs)
    _sharing(page, shared)
    _runs(page, runs, root)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.md").write_text(page.markdown(), encoding="utf-8")
    (folder / "report.html").write_text(page.html(), encoding="utf-8")
    plain = {"metrics": [plain_metric(metric) for metric in metrics], "shared": [vars(one) for one in shared]}
    (folder / "report.json").write_text(json.dumps({**plain, "failed": dict(problems)}, indent=2), encoding="utf-8")
    return page


def verdicts(metrics: Sequence[Metric]) -> Iterator[str]:
    """A plain sentence for each variant, on the first metric, and one on the control."""
    if not metrics:
        yield "No metric differs between any two runs, or the baseline has no run."
        return
    metric = metrics[0]
    name = spoken(metric.name)
    for row in metric.rows[1:]:
        if row.refused:
            yield f"{row.variant.label}: not compared, {row.refused}."
        elif row.comparison and row.p is None:
            yield f"{row.variant.label}: {signed(row.comparison.difference)} {name}; one seed says nothing about noise."
        elif row.comparison and row.variant.control:
            yield control_verdict(row, name)
        elif row.comparison:
            yield verdict(row, metric, name)


def verdict(row: Row, metric: Metric, name: str) -> str:
    assert row.comparison is not None and row.p is not None
    found = row.comparison
    size = f"{signed(found.difference)} {name} (95% {signed(found.low)} to {signed(found.high)}"
    figures = f"{size}, p = {row.p:.3g} by {row.test}, corrected)"
    if row.different:
        return (
            f"{row.variant.label} is different: {'better' if metric.better(found.difference) else 'worse'}, {figures}."
        )
    seen = f" With {found.n} seeds a true difference of {metric.detectable:.3g} is found four times of five." if (
        metric.detectable) else ""  # fmt: skip
    return f"{row.variant.label} is noise: {figures} cannot be told from none.{seen}"


def control_verdict(row: Row, name: str) -> str:
    assert row.comparison is not None and row.p is not None
    size = f"{signed(row.comparison.difference)} {name}, p = {row.p:.3g}"
    if row.different:
        return (
            f"Control: the baseline differs from itself with other seeds ({size}). One control of {1 / ALPHA:.0f} "
            "does by chance; with so few seeds take every finding above for a hint, and run more."
        )
    return f"Control: the baseline with other seeds does not differ from itself ({size}), as it should be."


def _figures(page: Page, metrics: Sequence[Metric], n: int) -> None:
    page.heading("Figures")
    page.text(
        f"Means over {n} seeds with standard deviation and 95% interval (Student's t); differences to the baseline are "
        f"taken seed by seed. p: sign flip counts all signs of the differences, and {n} seeds cannot go below "
        f"{smallest_p(n):.3g} there, whatever the difference; paired t takes differences for about normal. Corrected: "
        "by Holm for the number of variants, of sign flip where so few seeds could show anything, else of t."
        if n > 1
        else "One seed each: no interval and no test. Repeat with --seeds 3 or more."
    )
    quality = [metric for metric in metrics if metric.name in QUALITY]
    for metric in quality or metrics:
        table(page, metric)
    others = [metric for metric in metrics if metric.name not in (*QUALITY, *SPEED)] if quality else []
    if others:
        page.heading("What else differs")
        names = [row.variant.label for row in metrics[0].rows]
        means = {spoken(m.name): {row.variant.label: row.summary.mean for row in m.rows} for m in others}
        page.table([["mean", *names], *([m, *(number(v.get(name)) for name in names)] for m, v in means.items())])


def table(page: Page, metric: Metric) -> None:
    better = "higher" if metric.name in HIGHER_IS_BETTER else "lower"
    header = [f"{spoken(metric.name)} ({better} is better)", "mean", "sd", "95%", "difference", "95%", "sign flip p",
              "t p", "corrected p", ""]  # fmt: skip
    rows = [header]
    for place, row in enumerate(metric.rows):
        line = [row.variant.label + (" (baseline)" if place == 0 else ""), number(row.summary.mean),
                number(row.summary.deviation), interval(row.summary.low, row.summary.high)]  # fmt: skip
        if row.refused:
            line += ["", "", "", "", "", f"not compared: {row.refused}"]
        elif found := row.comparison:
            judged = "" if row.p is None else "different" if row.different else "noise"
            line += [signed(found.difference), interval(found.low, found.high),
                     number(found.p_resampled) if found.n > 1 else "",
                     number(found.p_t), number(row.p), judged]  # fmt: skip
        else:
            line += [""] * 6
        rows.append(line)
    page.table(rows)
    if metric.detectable and metric.deviation:
        page.text(
            f"Within variants runs deviate by {metric.deviation:.3g}. The smallest difference that this ablation finds "
            f"with a probability of {POWER} (alpha {ALPHA}): {metric.detectable:.3g}."
        )


def _speed(page: Page, metrics: Sequence[Metric]) -> None:
    speed = [metric for metric in metrics if metric.name in SPEED]
    if not speed:
        return
    page.heading("Speed and memory")
    page.text("Of the trainings as they ran, beside whatever else ran then; those that were resumed count their end.")
    labels = [row.variant.label for row in speed[0].rows]
    by_metric = [{row.variant.label: row.summary for row in metric.rows} for metric in speed]
    rows = [["", *(spoken(metric.name) for metric in speed)]]
    for label in labels:
        cells = [
            f"{number(found.mean)} ± {number(found.deviation)}" if (found := by.get(label)) else "" for by in by_metric
        ]
        rows.append([label, *cells])
    page.table(rows)


def curves(runs: Sequence[Run]) -> list[Curve]:
    """The smoothed loss over tokens of each run; the runs of a variant in one colour."""
    found = []
    for run in runs:
        points = [
            (float(row["tokens"]), float(row["loss_smooth"]))
            for row in run.revision.rows("data/train/loss.csv")
            if row.get("loss_smooth")
        ]
        found.append(Curve(run.planned.variant.label, points))
    return found


def shared_stages(folder: Path, runs: Sequence[Run]) -> list[Shared]:
    """What the runs told of their stages (runner.Told)."""
    told = []
    for run in runs:
        with contextlib.suppress(OSError, ValueError):
            told.append(json.loads((folder / f"{run.planned.name}.json").read_bytes()))
    names = dict.fromkeys(stage for one in told for key in ("ran", "taken", "unchanged") for stage in one[key])
    found = []
    for stage in names:
        seconds = [one["ran"][stage] for one in told if stage in one["ran"]]
        # what an attempt ran before it was killed, the next one took
        taken = sum(stage not in one["ran"] and stage in (*one["taken"], *one["unchanged"]) for one in told)
        found.append(Shared(stage, len(seconds), taken, sum(seconds) / len(seconds) if seconds else None))
    return found


def _sharing(page: Page, shared: Sequence[Shared]) -> None:
    if not shared:
        return
    page.heading("What sharing stages saved")
    saved = sum(one.saved or 0 for one in shared)
    page.text(
        f"A stage whose params, inputs and code are equal runs once: "
        f"{counted(sum(one.ran for one in shared), 'stage')} ran, "
        f"{sum(one.taken for one in shared)} came from the cache, which saved {saved:,.0f} s by the mean time of "
        "those that ran. Stages that two experiments reach at the same time wait for each other and count as ran."
    )
    rows = [["stage", "ran", "not run again", "seconds a run", "seconds saved"]]
    for one in shared:
        rows.append([one.stage, str(one.ran), str(one.taken), number(one.seconds), number(one.saved)])
    page.table(rows)


def _runs(page: Page, runs: Sequence[Run], root: Path) -> None:
    page.heading("Runs")
    page.text(
        "`dvc exp apply NAME` brings a run into the workspace, `millrace compare NAME NAME` sets two side by side."
    )
    tracked = mlflow_runs(root)
    varied = varied_params(runs)
    rows = [["experiment", "DVC revision", "MLflow run", "seed", *varied]]
    for run in runs:
        state = run.revision.json("data/train/last/state.json") or {}
        params = run.revision.flat_params()
        values = [shown(params.get(name)) for name in varied]
        rows.append([run.planned.name, run.revision.commit[:10], tracked.get(str(state.get("run")), ""),
                     str(run.planned.seed), *values])  # fmt: skip
    page.table(rows)


def varied_params(runs: Sequence[Run]) -> list[str]:
    """The params in which runs differ, but for the seed, as they were, not as they were asked for."""
    params = [run.revision.flat_params() for run in runs]
    names = dict.fromkeys(name for one in params for name in one)
    return [n for n in names if n != "train.seed" and len({json.dumps(one.get(n), default=str) for one in params}) > 1]


def plain_metric(metric: Metric) -> dict[str, Any]:
    rows = [
        {
            "variant": row.variant.label,
            "control": row.variant.control,
            "values": row.values,
            **{f"{key}": value for key, value in dataclasses.asdict(row.summary).items()},
            "comparison": dataclasses.asdict(row.comparison) if row.comparison else None,
            "refused": row.refused,
            "p_corrected": row.p,
            "test": row.test,
            "different": row.different,
        }
        for row in metric.rows
    ]
    return {"metric": metric.name, "deviation": metric.deviation, "detectable": metric.detectable, "rows": rows}


def spoken(metric: str) -> str:
    """`bits per byte` of `evaluate.bits_per_byte`; metrics of other stages keep the name of the stage."""
    return metric.removeprefix("evaluate.").replace(".", ": ", 1).replace("_", " ")


def number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.5g}"


def signed(value: float | None) -> str:
    return "" if value is None else f"{value:+.4g}"


def interval(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"{number(low)} to {number(high)}"
