"""The command `millrace gc`: frees cache and scratch that nothing needs any more.

    cache      what neither the workspace, a branch, a tag, HEAD nor an experiment names (`dvc gc` underneath), also
               those of other git worktrees that share the cache, and of registered models with an alias
    scratch    published work; other work that nobody has touched for a week; copies
               and worktrees that killed experiments left

Of `execution.scratch`, which may be a folder with work of others, only folders of stages are looked at.
It shows what it would free, and asks. A folder in which a process works is held by its lock and stays. A run that
would need a freed output makes it again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import click

from stages.errors import BadInput
from stages.wording import counted

KEPT = ("--workspace", "--all-branches", "--all-tags", "--rev", "HEAD", "--all-experiments")
REMOVING = re.compile(r"Removing (/.+)$", re.MULTILINE)
DIGEST = re.compile(r"[0-9a-f]{16}")
DAY = 86400


@dataclasses.dataclass(frozen=True)
class Garbage:
    """Something that can go: a folder or file, why, and the bytes that its removal frees."""

    path: Path
    why: str
    n_bytes: int


@click.command()
@click.option("--dry-run", is_flag=True, help="Show what would be freed, and remove nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option(
    "--shared-cache",
    is_flag=True,
    help="The DVC cache lies outside this repository: free it all the same. What other clones that use it need, and "
    "this one does not name, is lost to them.",
)
@click.option(
    "--days", default=7.0, show_default=True, help="Unpublished work stays for so long after its last change."
)
def gc(dry_run: bool, yes: bool, shared_cache: bool, days: float) -> None:
    """Frees cache that no kept experiment, branch, tag or workspace needs, and scratch that is done with.

    First it prints what would go. To keep an experiment's outputs keep the experiment; `dvc exp remove NAME` gives
    them up. Commits that are no tip of a branch and have no tag are not kept: tag what you want to come back to.
    While an experiment is at work nothing is removed: no revision names its files yet.

    \b
      millrace gc --dry-run
      millrace gc --days 0 --yes       unpublished trainings as well, but for those at work
    """
    from pipeline.checkpoints import size
    from stages.root import find_root

    root = find_root()
    hindrance = why_not(root, shared_cache)
    if hindrance and not dry_run:
        raise BadInput(hindrance)
    cache, scratch = list(dead_cache(root)), list(dead_scratch(root, days))
    tell(root, cache, scratch)
    freed = sum(one.n_bytes for one in cache)
    total = size(freed + sum(one.n_bytes for one in scratch))
    if not cache and not scratch:
        click.echo("nothing to free")
        return
    if dry_run:
        click.echo(f"{total:>9}  would be freed; nothing was removed")
        if hindrance:
            click.echo(f"without --dry-run this is refused now: {hindrance}")
        return
    if not yes:
        click.confirm(f"free {total}?", abort=True)
    if hindrance := why_not(root, shared_cache):  # an experiment may have begun meanwhile
        raise BadInput(hindrance)
    if cache:
        run_dvc_gc(root, dry=False)
    left = [one for one in scratch if not remove(one.path)]
    for one in left:
        click.echo(f"{shown(one.path, root)} stays: a process works in it, or it cannot be removed", err=True)
    click.echo(f"freed {size(freed + sum(one.n_bytes for one in scratch if one not in left))}")
    if any(one.path.exists() for one in left):
        sys.exit(1)


def tell(root: Path, cache: Sequence[Garbage], scratch: Sequence[Garbage]) -> None:
    """Prints what would go, and what stays although it looks as if it could go."""
    from pipeline.checkpoints import size
    from pipeline.registered import not_looked_at

    for one in scratch:
        click.echo(f"{size(one.n_bytes):>9}  {shown(one.path, root)}  ({one.why})")
    for folder, steps in kept_to_branch(root):
        click.echo(f"{'stays':>9}  {shown(folder, root)}  (finished; checkpoints of step {steps} are published nowhere "
                   f"else: `millrace checkpoints prune {folder.name}` removes them)")  # fmt: skip
    files = counted(len(cache), "file")
    click.echo(f"{size(sum(one.n_bytes for one in cache)):>9}  DVC cache: {files} that nothing kept names")
    for line in not_looked_at(root):
        click.echo(line)


def why_not(root: Path, shared_cache: bool) -> str:
    """Why nothing may be removed now, or nothing: others need files of the cache that nothing here names."""
    from stages.dvc_cache import cache_in

    homes, cache = [root, *sharing_worktrees(root)], cache_in(root).resolve()
    if not shared_cache and not any(cache.is_relative_to(home.resolve()) for home in homes):
        return (
            f"the DVC cache {cache} lies outside this repository, and other clones may need what this one does not "
            "name; if none does, give --shared-cache"
        )
    if folder := next((folder for home in homes for folder in at_work(home)), None):
        return (
            f"an experiment is at work in {folder}, and nothing names its files yet; wait for its end (a killed one "
            "counts for ten minutes more)"
        )
    return ""


def at_work(root: Path) -> Iterator[Path]:
    """Temporary copies, worktrees and ablations of a workspace in which runs are alive."""
    from pipeline.ablation.runner import dead_copies, temporary_copies

    dead = dead_copies(root)
    yield from (folder for folder in temporary_copies(root) if folder not in dead)
    own = own_scratch(root)
    for folder in [*(own / "worktrees").glob("*/"), *(own / "ablations").glob("*/")]:
        if not free_of_others(folder):
            yield folder


def dead_cache(root: Path) -> Iterator[Garbage]:
    """The files of the cache that `dvc gc` would remove."""
    for name in dict.fromkeys(REMOVING.findall(run_dvc_gc(root, dry=True))):
        path = Path(name)
        with contextlib.suppress(OSError):
            found = path.stat()
            yield Garbage(path, "no revision names it", found.st_size if found.st_nlink == 1 else 0)


def run_dvc_gc(root: Path, dry: bool) -> str:
    """What `dvc gc` says.

    Raises:
        BadInput: it refused, with its reason.
    """
    from pipeline.dvc_program import dvc
    from pipeline.registered import projects

    with projects(root) as registered:
        others = [part for path in (*sharing_worktrees(root), *registered) for part in ("--projects", str(path))]
        answer = dvc(root, "gc", *KEPT, *others, "--force", *(["--dry"] if dry else []))
    if answer.returncode:
        raise BadInput(f"`dvc gc` refused: {answer.stderr.strip().splitlines()[-1]}")
    return answer.stdout + answer.stderr


def sharing_worktrees(root: Path) -> list[Path]:
    """The other worktrees of this repository that use the same cache; what they have not committed is needed too."""
    from pipeline.revisions import git
    from stages.dvc_cache import cache_in

    lines = (git(root, "worktree", "list", "--porcelain") or "").splitlines()
    paths = [Path(line.removeprefix("worktree ")) for line in lines if line.startswith("worktree ")]
    cache = cache_in(root).resolve()
    return [
        path
        for path in paths
        if path.resolve() != root.resolve() and (path / ".dvc").is_dir() and cache_in(path).resolve() == cache
    ]


def dead_scratch(root: Path, days: float) -> Iterator[Garbage]:
    """Scratch that nobody works in and nobody needs."""
    from pipeline.ablation.runner import dead_copies
    from stages.locks import exclusive

    for folder in work_folders(root):
        with exclusive(folder) as free:
            if free and (why := why_dead(folder, days)):
                yield Garbage(folder, why, bytes_alone([folder]))
    for folder in dead_copies(root):
        yield Garbage(folder, "copy of an experiment that was killed", bytes_alone([folder]))
    own = own_scratch(root)
    for folder in sorted([*(own / "worktrees").glob("*/"), *(own / "ablations").glob("*/desk/")]):
        if free_of_others(folder.parent if folder.name == "desk" else folder):
            yield Garbage(folder, "worktree of a run that was killed", bytes_alone([folder]))
    if (smoke := own / "smoke").is_dir() and free_of_others(smoke):
        yield Garbage(smoke, "copy of a smoke run that failed", bytes_alone([smoke]))


def own_scratch(root: Path) -> Path:
    """Where worktrees, desks and smoke copies always lie, and stages work unless `execution.scratch` says where."""
    return root / ".dvc" / "tmp" / "millrace"


def work_folders(root: Path) -> Iterator[Path]:
    """The folders in which stages of the graph work or have worked, here and in `execution.scratch`."""
    from pipeline.graph import read_graph
    from stages.execution import Execution
    from stages.params import ParamsFile

    execution = ParamsFile(root / "params.yaml").section("execution", Execution)
    own = own_scratch(root)
    for base in dict.fromkeys((own, root / execution.scratch if execution.scratch else own)):
        for stage in read_graph(root).stages:
            for folder in sorted((base / stage).glob("*/")):
                if DIGEST.fullmatch(folder.name) and not folder.is_symlink():
                    yield folder


def kept_to_branch(root: Path) -> Iterator[tuple[Path, str]]:
    """Published trainings whose folder holds checkpoints on purpose, and the steps of these."""
    from stages.entry import PUBLISHED

    for folder in work_folders(root):
        if (folder / PUBLISHED).exists() and (steps := unpublished(folder)):
            yield folder, ", ".join(f"{step:,}" for step in steps)


def unpublished(folder: Path) -> list[int]:
    """The steps of a published training's checkpoints but for its best and its last, which are published.

    With `execution.keep_checkpoints` above 1 they are there to be branched from (`train.resume_from`).
    """
    from pipeline.runs import read
    from stages.checkpoint import checkpoints_in

    metrics = read(folder / "metrics.json")
    return [step for step in checkpoints_in(folder) if step not in (metrics.get("best_step"), metrics.get("steps"))]


def why_dead(folder: Path, days: float) -> str:
    """Why a scratch folder is needed no more, or nothing."""
    from stages.entry import PUBLISHED

    if (folder / PUBLISHED).exists():
        return "" if unpublished(folder) else "finished and published"
    newest = max((path.lstat().st_mtime for path in [folder, *folder.rglob("*")]), default=0.0)
    age = (time.time() - newest) / DAY
    return f"unpublished, untouched for {counted(round(age), 'day')}" if age >= days else ""


def shown(path: Path, root: Path) -> Path:
    return path.relative_to(root) if path.is_relative_to(root) else path


def free_of_others(folder: Path) -> bool:
    from pipeline.smoke import alone_in

    with contextlib.suppress(BadInput), alone_in(folder):
        return True
    return False


def remove(folder: Path) -> bool:
    """Removes a folder of scratch, unless somebody has begun to work in it meanwhile."""
    from stages.locks import exclusive

    if DIGEST.fullmatch(folder.name):
        with exclusive(folder) as free:
            if not free:
                return False
            shutil.rmtree(folder, ignore_errors=True)
    elif folder.name.startswith("tmp") or free_of_others(folder.parent if folder.name == "desk" else folder):
        shutil.rmtree(folder, ignore_errors=True)
    return not folder.exists()


def bytes_alone(folders: Iterable[Path]) -> int:
    """The bytes below folders that are nowhere else: a file with another link takes its space there as well."""
    found = [path.lstat() for folder in folders for path in folder.rglob("*") if path.is_file()]
    return sum(one.st_size for one in found if one.st_nlink == 1)
