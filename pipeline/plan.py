"""The command `millrace plan`: what a run will take, in documents, tokens, GB and hours, before it begins.

    8xh100: 200 GB of text -> 80 GB of documents, twice (download, clean) -> 44 billion tokens, 2 bytes each

Everything is text times a constant, and each constant was measured and names where (`SOURCES`): so the plan is right
within a factor of two for text like that, and says which factor it used. Disk is counted as it is used with links:
what a stage publishes lies once in the cache and costs nothing more in data/; with copies it counts twice.
"""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from stages.errors import BadInput

FAILED = 1
GB = 1e9
FAR_SHORT = 1.5  # `millrace run` begins where the plan asks for less than this much of what is free
ASKED_FROM_GB = 5  # and does not look at smaller ones

# name: (value, where it was measured)
SOURCES: dict[str, tuple[float, str]] = {
    "python_docs: bytes of text": (24.83e6, "data/clean/metrics.json of the default run: bytes_in"),
    "python_docs: bytes a document": (8553, "data/clean/metrics.json of the default run: bytes_in / documents_in"),
    "web: bytes a document": (4900, "FineWeb-Edu's sample of 10 billion tokens: 9.67 million documents"),
    "python_docs: stored / text": (0.27, "dvc.lock of the default run: data/download/documents / bytes_in"),
    "web: stored / text": (0.40, "zstd on web text, assumed; nothing here was measured on it"),
    "LZ4 / zstd": (1.4, "benchmarks/records/2026-11-23-data.json: documents between stages"),
    "kept by clean and dedup": (0.97, "data/clean/metrics.json of the default run: bytes_out / bytes_in"),
    "bytes a token at 4,096": (3.29, "the default run: bytes_out / pack's tokens_train, vocabulary 4,096"),
    "bytes a token at 32,000": (4.5, "web text at 32,000, assumed from GPT-2's 4.7 on FineWeb-Edu"),
    "download: CPU s a GB": (10.2, "benchmarks/records/2026-11-23-data.json: download, 1 GB"),
    "clean: CPU s a GB": (80.2, "benchmarks/records/2026-11-23-data.json: clean, 1 GB"),
    "dedup: CPU s a GB": (7.8, "benchmarks/records/2026-11-23-data.json: dedup, 1 GB"),
    "tokenizer: CPU s a GB": (40.2, "benchmarks/records/2026-11-23-data.json: tokenizer, 1 GB"),
    "pack: CPU s a GB": (81.0, "benchmarks/records/2026-11-23-data.json: pack, 1 GB"),
    "pack: CPU s a GB, group": (
        39.5,
        "benchmarks/records/2026-11-23-data.json: pack, 4 GB, three groups of reserved text: (640.3 / 4 - 81) / 2",
    ),
    "pack: bytes of a group": (27.7e6, "4 million shingles (stages/pack/leaks.py), 6.6 bytes a word (docs/dedup.md)"),
    "GPU: FLOP/s of bf16": (989e12, "data sheet of H100 and H200 (stages/train/peaks.py)"),
    "GPU: MFU in bf16": (0.48, "benchmarks/records/2026-11-23-training-h200.txt: 124m to base, lot 3"),
    "GPU: MFU in fp8": (0.58, "benchmarks/records/2026-11-23-training-h200.txt: medium and base, of the bf16 peak"),
    "GPU: kept of each at n > 1": (
        0.93,
        "benchmarks/records/2026-11-22-scaling-h200.txt: four of one host, medium bf16: 701.2K of 4 x 188.2K tokens/s",
    ),
    "CPU: FLOP/s a core": (
        39e9,
        "README: the default run, 6,000 tokens/s of the preset tiny on two idle cores; far less where others work too",
    ),
    "evaluate: seconds": (36, "README: the default run's model of 2 million parameters; larger ones take longer"),
    "export: seconds": (38, "README: the default run's model of 2 million parameters; larger ones take longer"),
}


def known(name: str) -> float:
    return SOURCES[name][0]


@dataclasses.dataclass(frozen=True)
class Step:
    """One stage: what it publishes (cache and data/ are one by links), its scratch at the peak, its hours."""

    stage: str
    output_gb: float
    scratch_gb: float
    hours: float


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a run takes.

    Attributes:
        copies: how often DVC keeps an output: 1 with links, 2 without.
        used: the constants that went in, with their sources.
    """

    text_gb: float
    documents: float
    tokens: float
    trained_tokens: float
    parameters: int
    steps: tuple[Step, ...]
    copies: int
    free_gb: float
    there_gb: float
    cores: int
    used: Mapping[str, tuple[float, str]]

    @property
    def hours(self) -> float:
        return sum(step.hours for step in self.steps)

    @property
    def peak_gb(self) -> float:
        """The most that is on the disk at once: everything published so far and the scratch of the stage at work;
        finished shards of data stages stay in scratch as links and cost nothing more."""
        peak = published = 0.0
        for step in self.steps:
            peak = max(peak, published + step.output_gb * self.copies + step.scratch_gb)
            published += step.output_gb * self.copies
        return peak

    @property
    def short_gb(self) -> float:
        """What is missing; what lies in cache and scratch of this repository already counts as there."""
        return max(0.0, self.peak_gb - self.free_gb - self.there_gb)


def make_plan(root: Path, sections: Mapping[str, Any], copies: int = 1) -> Plan:
    """The plan for params that have been checked.

    Raises:
        BadInput: nothing says how much text there will be.
    """
    text, web = text_bytes(root, sections["download"])
    kind = "web" if web else "python_docs"
    kept = text * known("kept by clean and dedup")
    vocabulary = sections["tokenizer"].vocab_size
    density = known("bytes a token at 32,000" if vocabulary >= 16000 else "bytes a token at 4,096")
    documents = text / known(f"{kind}: bytes a document")
    stored = known(f"{kind}: stored / text")
    if sections["download"].max_documents:
        documents = min(documents, sections["download"].max_documents)
    steps = [
        *data_steps(text, kept, stored, documents, kept / density * (2 if vocabulary <= 1 << 16 else 4), sections),
        *model_steps(sections, vocabulary),
    ]
    names = [name for name in SOURCES if not name.startswith(("python_docs" if web else "web", "GPU", "CPU"))]
    names += [name for name in SOURCES if name.startswith("GPU" if on_gpu(sections["execution"]) else "CPU")]
    free, there = free_bytes(root) / GB, on_disk(root) / GB
    return Plan(
        text / GB, documents, kept / density, sections["train"].max_steps * sections["train"].batch_tokens,
        parameters_of(sections, vocabulary), tuple(steps), copies, free, there,
        sections["execution"].n_workers(), {name: SOURCES[name] for name in names},
    )  # fmt: skip


def text_bytes(root: Path, download: Any) -> tuple[float, bool]:
    """Bytes of text, and whether they are like those of the web."""
    limit = float(download.max_bytes) or float("inf")
    if download.source == "python_docs":
        whole = known("python_docs: bytes of text")
        if download.max_documents:
            whole = min(whole, download.max_documents * known("python_docs: bytes a document"))
        return min(limit, whole), False
    by_count = download.max_documents * known("web: bytes a document") or float("inf")
    if download.source == "huggingface":
        if min(limit, by_count) == float("inf"):
            raise BadInput(
                "download.max_bytes is 0, so nothing says how much the hub will send; set it, in bytes of text"
            )
        return min(limit, by_count), True
    place = root / Path(download.inputs).expanduser()
    files = [place] if place.is_file() else [path for path in place.rglob("*") if path.is_file()]
    packed = {".gz": 3.0, ".zst": 3.0, ".bz2": 3.5, ".xz": 3.5, ".parquet": 2.5}
    return min(limit, by_count, sum(path.stat().st_size * packed.get(path.suffix, 1.0) for path in files)), True


def data_steps(
    text: float, kept: float, stored: float, documents: float, tokens_bytes: float, sections: Mapping[str, Any]
) -> Iterator[Step]:
    cores = sections["execution"].n_workers()
    published = {
        "download": text * stored,
        "clean": kept * stored * known("LZ4 / zstd"),
        "dedup": documents * 24,  # an id and a cluster a document
        "tokenizer": 5e6,
        "pack": tokens_bytes,
    }
    for stage, n_bytes in published.items():
        seconds = text / GB * known(f"{stage}: CPU s a GB")
        if stage == "pack":  # compares all training text with each group of reserved text
            split = sections["split"]
            groups = math.ceil(kept * (split.validation + split.test) / known("pack: bytes of a group"))
            seconds += text / GB * known("pack: CPU s a GB, group") * max(groups - 1, 0)
        # bands of 28 keys with a document each, 12 bytes, sorted in parts (docs/dedup.md)
        scratch = documents * 28 * 12 if stage == "dedup" and sections["dedup"].enabled else n_bytes * 0.1
        yield Step(stage, n_bytes / GB, scratch / GB, seconds / cores / 3600)


def model_steps(sections: Mapping[str, Any], vocabulary: int) -> Iterator[Step]:
    """A checkpoint holds fp32 weights and two states; best and last are links to it, export writes weights anew."""
    parameters, train, execution = parameters_of(sections, vocabulary), sections["train"], sections["execution"]
    checkpoint = parameters * 12
    tokens = train.max_steps * train.batch_tokens
    work = work_per_token(sections, vocabulary)
    hours = tokens * work / speed(execution, train.precision) / 3600
    # best and last, and in scratch the newest ones and one that is being written
    yield Step("train", 2 * checkpoint / GB, (execution.keep_checkpoints + 1) * checkpoint / GB, hours)
    yield Step("evaluate", 0.01, 0.0, known("evaluate: seconds") / 3600)
    yield Step("export", parameters * 4 / GB, 0.0, known("export: seconds") / 3600)


def parameters_of(sections: Mapping[str, Any], vocabulary: int) -> int:
    from model.size import n_parameters

    config = sections["model"]
    if config.own_parts:  # not known in advance: as if they were the built-in ones
        config = dataclasses.replace(config, norm="rmsnorm", mlp="swiglu", layer_pattern="full")
    return n_parameters(config, vocabulary, sections["pack"].context_length)


def work_per_token(sections: Mapping[str, Any], vocabulary: int) -> float:
    from model.size import flops_per_token

    if sections["model"].own_parts:
        return 6.0 * parameters_of(sections, vocabulary)
    return flops_per_token(sections["model"], vocabulary, sections["pack"].context_length)


def speed(execution: Any, precision: str) -> float:
    """FLOP/s of the training."""
    from stages.execution import n_cores

    n = execution.n_processes
    if not on_gpu(execution):
        return known("CPU: FLOP/s a core") * (execution.threads * n or n_cores())
    mfu = known("GPU: MFU in fp8" if precision == "fp8" else "GPU: MFU in bf16")
    return known("GPU: FLOP/s of bf16") * mfu * n * (known("GPU: kept of each at n > 1") if n > 1 else 1.0)


def on_gpu(execution: Any) -> bool:
    from stages.devices import visible_devices

    return execution.device == "cuda" or (execution.device == "auto" and bool(visible_devices()))


def free_bytes(root: Path) -> int:
    """On the disk of DVC's cache, where all that is published lies."""
    from stages.dvc_cache import cache_in

    cache = cache_in(root)
    there = next(folder for folder in (cache, *cache.parents) if folder.exists())
    return shutil.disk_usage(there).free


def on_disk(root: Path) -> float:
    """Bytes in cache and scratch of this repository, each file once."""
    from stages.dvc_cache import cache_in

    seen: dict[tuple[int, int], int] = {}
    for folder in (cache_in(root), root / ".dvc" / "tmp" / "millrace"):
        for path in folder.rglob("*") if folder.is_dir() else ():
            found = path.lstat()
            if not path.is_dir():
                seen[found.st_dev, found.st_ino] = found.st_blocks * 512
    return float(sum(seen.values()))


def planned(root: Path, recipe: str | None) -> Plan:
    """The plan of params.yaml, or of a recipe over it."""
    import tempfile

    from pipeline.recipes import read_recipe
    from pipeline.smoke import fitted, override_params
    from stages.code.sections import read_sections
    from stages.params import ParamsFile

    if not recipe:
        return make_plan(root, read_sections(ParamsFile(root / "params.yaml")), copies_of(root))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "params.yaml"
        path.write_text((root / "params.yaml").read_text(encoding="utf-8"), encoding="utf-8")
        chosen = read_recipe(root, recipe)
        override_params(path, fitted(chosen, ParamsFile(path).values) if recipe == "smoke" else chosen)
        return make_plan(root, read_sections(ParamsFile(path)), copies_of(root))


def copies_of(root: Path) -> int:
    """2 where DVC copies between cache and workspace, as it does on file systems without reflinks by default."""
    from pipeline.links import probe
    from stages.dvc_cache import cache_in, setting

    cache = cache_in(root)
    working = probe(cache if cache.exists() else root, root)
    wanted = (setting(root, "cache", "type") or "reflink,copy").split(",")
    return 1 if next((kind for kind in wanted if kind.strip() in ("copy", *working)), "copy") != "copy" else 2


def stop_where_far_short(root: Path, recipe: str | None) -> None:
    """Raises where a run would fill the disk long before its end.

    Raises:
        BadInput: with what is needed and what there is.
    """
    try:
        plan = planned(root, recipe)
    except BadInput:
        return  # what cannot be planned is not judged
    if plan.peak_gb > ASKED_FROM_GB and plan.peak_gb > FAR_SHORT * (plan.free_gb + plan.there_gb):
        raise BadInput(
            f"the disk is far too small: about {plan.peak_gb:,.0f} GB are needed and {plan.free_gb:,.0f} GB are free; "
            "`millrace plan` shows for what; `millrace gc` frees what nothing needs, or lower download.max_bytes"
        )


@click.command()
@click.option("--recipe", metavar="NAME", help="Of recipes/NAME.yaml over params.yaml, such as 8xh100.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object with every figure.")
def plan(recipe: str | None, as_json: bool) -> None:
    """Says what a run will take before it begins: documents, tokens, GB and hours of each stage, and the disk.

    Estimates from constants that were measured, each printed with its source; within a factor of two. The exit code
    is 1 where the disk is short.

    \b
      millrace plan
      millrace plan --recipe 8xh100
    """
    from stages.root import find_root

    found = planned(find_root(), recipe)
    if as_json:
        derived = {"hours": found.hours, "peak_gb": found.peak_gb, "short_gb": found.short_gb}
        click.echo(json.dumps({**dataclasses.asdict(found), **derived}, indent=2))
    else:
        for line in lines_of(found):
            click.echo(line)
    if found.short_gb:
        sys.exit(FAILED)


def lines_of(plan: Plan) -> Iterator[str]:
    yield (
        f"{plan.text_gb:,.3g} GB of text, {plan.documents:,.0f} documents, {plan.tokens / 1e6:,.1f} million tokens; "
        f"{plan.parameters / 1e6:,.1f} million parameters read {plan.trained_tokens / 1e6:,.1f} million "
        f"({plan.trained_tokens / plan.tokens:.2f} passes)"
    )
    yield f"data stages on {plan.cores} cores (execution.workers, or what this machine has)"
    yield f"{'stage':10} {'GB kept':>10} {'GB scratch':>11} {'hours':>8}"
    for step in plan.steps:
        yield f"{step.stage:10} {step.output_gb * plan.copies:>10.3f} {step.scratch_gb:>11.3f} {step.hours:>8.2f}"
    how = (
        "links: cache and data/ share files"
        if plan.copies == 1
        else "copies: cache and data/ each; see `millrace doctor`"
    )
    yield (
        f"about {plan.hours:.1f} hours and {plan.peak_gb:,.1f} GB at the peak ({how}); {plan.free_gb:,.0f} GB are "
        f"free, {plan.there_gb:,.1f} GB of cache and scratch are there"
    )
    if plan.short_gb:
        yield f"the disk is short by {plan.short_gb:,.0f} GB: lower download.max_bytes, or run `millrace gc`"
    yield "estimated from:"
    for name, (value, source) in plan.used.items():
        yield f"  {name:28} {value:>10.4g}  {source}"
