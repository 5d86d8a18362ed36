"""Why a stage would run again, in well under a second: `millrace explain STAGE`.

dvc.lock holds what each stage was given when it ran last. `reasons` sets it against the present params, files and
code, and names what differs:

    param model.post_norm: false -> true
    code model.attention: Attention.forward changed
    file inputs: changed

The code is compared by function: dvc.lock names the fingerprint that the stage ran with by its hash, the DVC cache
has its bytes, and the present one is made anew (stages/code). DVC itself is not asked, which would take longer than
everything else; what is too large to be read is not judged, and the command says so.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from model.pattern import cycle
from stages.errors import BadInput

if TYPE_CHECKING:
    from pipeline.locked import State

Kind = Literal["param", "file", "code", "command", "never ran", "output"]
ABSENT = "not there"
SHORT = 8  # digits of a hash that are shown


@dataclasses.dataclass(frozen=True)
class Reason:
    """One thing that differs from the last run. `str` of it is one line."""

    kind: Kind
    name: str
    old: str = ""
    new: str = ""

    def __str__(self) -> str:
        match self.kind:
            case "never ran":
                return "never ran"
            case "param":
                return f"param {self.name}: {self.old} -> {self.new}"
            case "command":
                return f"command: {self.old} -> {self.new}"
            case "code":
                change = "changed" if self.old and self.new else "added" if self.new else "removed"
                return f"code {self.name} {change}"
        return f"{self.kind} {self.name}: {self.new}"


@dataclasses.dataclass
class Explanation:
    """Everything `millrace explain` says of a stage.

    Attributes:
        reasons: why it would run; empty where it would not.
        unchecked: files too large to be read here.
        before: stages that it waits for and that would run, with their reasons.
        after: stages that read what it makes, directly or through others.
        refused: what is wrong with params.yaml, or nothing.
        fresh: where no stage has run here, as in a new clone: those that the stage needs, itself the last.
    """

    stage: str
    reasons: list[Reason]
    unchecked: list[str]
    before: dict[str, list[Reason]]
    after: list[str]
    refused: str = ""
    fresh: list[str] = dataclasses.field(default_factory=list)


def reasons(root: Path, stage: str, dvc_status: dict | None = None) -> list[Reason]:
    """Why a stage would run again; an empty list where nothing is seen to differ.

    Args:
        dvc_status: the answer of `dvc status --json`, which is then believed about files, whatever their size.
    """
    return list(Present(root, dvc_status).reasons(stage))


def explain(root: Path, stage: str) -> Explanation:
    """What `millrace explain` says.

    Raises:
        BadInput: no such stage.
    """
    present = Present(root)
    present.graph.select([stage])
    found = list(present.reasons(stage))
    unchecked = list(present.unchecked)
    before = {name: list(present.reasons(name)) for name in present.graph.select([stage])[:-1] if name != "code"}
    waiting = {name: why for name, why in before.items() if why}
    made = (root / out for one in present.graph.stages.values() for out in one.outs)
    fresh = [] if any(path.exists() for path in made) else present.graph.select([stage])
    return Explanation(stage, found, unchecked, waiting, present.graph.downstream(stage), refusal(root), fresh)


def refusal(root: Path) -> str:
    """What the stage `code` would say of params.yaml, or nothing."""
    from pipeline.params_view import has_our_gate, resolved

    try:
        if has_our_gate(root):
            resolved(root)
    except BadInput as error:
        return str(error)
    return ""


class Present:
    """The repository as it is now, beside what dvc.lock says of it.

    Attributes:
        unchecked: files whose content was not looked at so far.
    """

    def __init__(self, root: Path, dvc_status: dict | None = None):
        from pipeline.graph import plain_params, read_graph
        from pipeline.locked import Locked

        self.root = root
        self.graph = read_graph(root)
        self.params = plain_params(root)
        self.locked = Locked(root)
        self.unchecked: list[str] = []
        self._status = dvc_status
        self._fingerprints = Fingerprints(root, self.params)

    def reasons(self, stage: str) -> Iterator[Reason]:
        locked = self.locked.stages.get(stage)
        if locked is None:
            yield Reason("never ran", stage)
            return
        if (command := self.graph.stages[stage].command) != locked.get("cmd"):
            yield Reason("command", stage, str(locked.get("cmd")), command)
        yield from self._params(stage, locked.get("params", {}).get("params.yaml", {}))
        yield from self._deps(stage)
        yield from self._outs(stage)

    def _params(self, stage: str, locked: Mapping[str, Any]) -> Iterator[Reason]:
        for name in self.graph.stages[stage].params:
            then = dict(leaves(name, locked[name])) if name in locked else {}
            value: Any = self.params
            for key in name.split("."):
                value = value.get(key) if isinstance(value, Mapping) else None
            now = dict(leaves(name, value)) if value is not None else {}
            for leaf in sorted(then.keys() | now.keys()):
                old, new = then.get(leaf, ABSENT), now.get(leaf, ABSENT)
                if old != new:
                    yield Reason("param", leaf, old, new)

    def _deps(self, stage: str) -> Iterator[Reason]:
        locked = self.locked.files(stage, "deps")
        fingerprint = f"data/code/{stage}.json"
        for path in self.graph.stages[stage].deps:
            if path not in locked:
                yield Reason("file", path, "", "new in dvc.yaml")
            elif path == fingerprint:
                yield from self._code(stage, path, locked[path]["md5"])
            elif (state := self._state(stage, "changed deps", path, locked[path])) in ("changed", "missing"):
                yield Reason("file", path, str(locked[path].get("md5"))[:SHORT], state)
        for path in locked.keys() - set(self.graph.stages[stage].deps):
            yield Reason("file", path, str(locked[path].get("md5"))[:SHORT], "no longer in dvc.yaml")

    def _code(self, stage: str, path: str, md5: str) -> Iterator[Reason]:
        now = self._fingerprints.of(stage)
        then = self.locked.content(path, md5)
        if then is None:
            # which function differs, the lost file alone could tell
            if md5_as_written(now) != md5:
                name = f"of {stage} (its last fingerprint is not in the cache, so no function can be named)"
                yield Reason("code", name, md5[:SHORT], now["digest"])
            return
        yield from changed_code(json.loads(then)["modules"], now["modules"])

    def _outs(self, stage: str) -> Iterator[Reason]:
        locked = self.locked.files(stage, "outs")
        for path in self.graph.stages[stage].outs:
            if path not in locked:
                yield Reason("output", path, "", "new in dvc.yaml")
            elif (state := self._state(stage, "changed outs", path, locked[path])) in ("changed", "missing"):
                yield Reason("output", path, str(locked[path].get("md5"))[:SHORT], state)

    def _state(self, stage: str, kind: str, path: str, locked: Mapping[str, Any]) -> State:
        if self._status is None:
            state = self.locked.state(path, locked)
            if state == "unchecked" and path not in self.unchecked:
                self.unchecked.append(path)
            return state
        said = [entry.get(kind, {}) for entry in self._status.get(stage, []) if isinstance(entry, dict)]
        word = next((entry[path] for entry in said if path in entry), "")
        return "same" if not word else "missing" if word == "deleted" else "changed"


class Fingerprints:
    """The fingerprints of the code as it is now, each file read once, most of them never (fingerprint/memo.py)."""

    def __init__(self, root: Path, params: Mapping[str, Any]):
        self.root = root
        self._params = params
        self._project: Any = None
        self._memo: Any = None

    def of(self, stage: str) -> dict:
        from stages.code.stage import fingerprint
        from stages.fingerprint.imports import Project
        from stages.fingerprint.memo import memo_of

        if self._project is None:
            self._memo = memo_of(self.root)
            self._project = Project(self.root, self._memo)
        own = [module for name in own_names(self._params) if (module := name.rpartition(".")[0]) in self._project.files]
        found = fingerprint(self._project, stage, own)
        self._memo.save()
        return found


def own_names(params: Mapping[str, Any]) -> Iterator[str]:
    """What params.yaml names by module: parts, hooks and objectives of users."""
    model, train = params.get("model") or {}, params.get("train") or {}
    kinds: tuple[str, ...] = ()
    with contextlib.suppress(ValueError):  # not a pattern: the stage `code` says so
        kinds = cycle(str(model.get("layer_pattern", "auto")))
    parts = [model.get("norm", ""), model.get("mlp", ""), *dict.fromkeys(kinds)]
    for name in [*parts, *(train.get("hooks") or []), train.get("objective", "")]:
        if "." in str(name):
            yield str(name).strip()


def changed_code(then: Mapping[str, Mapping], now: Mapping[str, Mapping]) -> Iterator[Reason]:
    """The functions that differ between two fingerprints; a module that came or went is one reason."""
    for module in sorted(then.keys() | now.keys()):
        old, new = then.get(module, {}), now.get(module, {})
        if not (old and new):
            yield Reason("code", module, _digest(old), _digest(new))
            continue
        for name in sorted(old.keys() | new.keys()):
            if old.get(name) != new.get(name):
                shown = {"<module>": f"{module}: module level", "<file>": module}.get(name, f"{module}: {name}")
                yield Reason("code", shown, old.get(name, ""), new.get(name, ""))


def _digest(hashes: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()[:16] if hashes else ""


def md5_as_written(fingerprint: dict) -> str:
    """The hash of the file that the stage `code` would write."""
    import tempfile

    from pipeline.locked import file_md5
    from stages.files import write_json

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "fingerprint.json"
        write_json(path, fingerprint)
        return file_md5(path)


def leaves(name: str, value: Any) -> Iterator[tuple[str, str]]:
    """Dotted names and shown values below a param: `{"train": {"lr": 0.02}}` is `train.lr`, `0.02`."""
    if isinstance(value, Mapping) and value:
        for key, below in value.items():
            yield from leaves(f"{name}.{key}", below)
    else:
        yield name, shown(value)


def shown(value: Any) -> str:
    """A value as one would write it into params.yaml."""
    if isinstance(value, str) and value and value == value.strip() and "\n" not in value:
        return value
    return json.dumps(value, ensure_ascii=False, default=str)


@click.command(name="explain")
@click.argument("stage")
@click.option("--json", "as_json", is_flag=True, help="One JSON object: reasons, unchecked, before, after.")
def command(stage: str, as_json: bool) -> None:
    """Says why a stage would run again: which param, which file, which function.

    Compared with the last run that dvc.lock has, without starting DVC. Files that are large and are no links to the
    cache are not read; they are named, and `dvc status STAGE` judges them. The exit code is 0 either way.

    \b
      millrace explain train
      millrace explain evaluate --json
    """
    from stages.root import find_root

    found = explain(find_root(), stage)
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(found), indent=2, ensure_ascii=False))
        return
    for line in lines_of(found):
        click.echo(line)


def lines_of(found: Explanation) -> Iterator[str]:
    stage = found.stage
    if found.refused:
        yield f"nothing would run: the stage code would refuse {found.refused}"
    if found.fresh:
        elsewhere = "" if found.reasons[0].kind == "never ran" else "; dvc.lock is of a run elsewhere, see `dvc pull`"
        yield f"no stage has run in this clone: `dvc repro {stage}` runs {', '.join(found.fresh)}{elsewhere}"
        return
    if found.reasons:
        yield f"{stage} would run, or come from DVC's run cache if it ran so before:"
        yield from (f"  {reason}" for reason in found.reasons)
    elif found.before:
        yield f"{stage} is as it ran last, but waits for stages that would run:"
    else:
        yield f"{stage} would not run: params, code and files are as they were"
    for name, why in found.before.items():
        more = f", and {len(why) - 1} more" if len(why) > 1 else ""
        yield f"  before it {name}: {why[0]}{more}"
    if found.before:
        yield f"  {stage} runs where what they make differs from what it read last"
    if found.reasons and found.after:
        yield f"after it, where what it makes differs: {', '.join(found.after)}"
    if found.unchecked:
        yield f"not read (large, no links to the cache): {', '.join(found.unchecked)}; `dvc status {stage}` reads them"
