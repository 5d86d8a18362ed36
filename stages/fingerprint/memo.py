"""What was read in each Python file of the project, kept for the next time.

Parsing and hashing 200 files takes two seconds of a processor, and between two runs few of them change. So what
was read in a file is kept by its path and a hash of its bytes: an edit of one file reads one file. The fingerprints
are those of a run without a memo; the memo of another Python, or of another way to read, is not looked at.

    stages/pack/plan.py 5d2c..   ->   imports [numpy, stages.tokens, ..], strings [], hashes {"plan": "ab12..", ..}
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import sys
from pathlib import Path

READERS = ("memo.py", "imports.py", "functions.py", "../portable.py")
HERE = Path(__file__).parent
# taken when this is imported, as the code that reads is: a process that lives long may outlive its sources
READER = (
    f"{sys.version_info[:2]} " + hashlib.sha256(b"".join((HERE / n).read_bytes() for n in READERS)).hexdigest()[:24]
)


@dataclasses.dataclass(frozen=True)
class Reading:
    """What one module says.

    Attributes:
        imports: names that it imports, made absolute.
        strings: its strings that look like the name of a module of the project.
        hashes: one hash per function.
    """

    imports: list[str]
    strings: list[str]
    hashes: dict[str, str]


class Memo:
    """The readings of one file of the memo; what was not asked for since is forgotten by `save`."""

    def __init__(self, path: Path):
        self.path = path
        self._asked: dict[str, Reading] = {}
        self._changed = False
        self._known: dict[str, dict] = {}
        try:
            kept = json.loads(path.read_bytes())
            if kept["reader"] == READER:
                self._known = kept["readings"]
        except (OSError, ValueError, TypeError, KeyError):
            pass  # the first time, or a file cut short

    def get(self, path: str, content: bytes) -> Reading | None:
        key = _key(path, content)
        if key not in self._asked and key in self._known:
            self._asked[key] = Reading(**self._known[key])
        return self._asked.get(key)

    def put(self, path: str, content: bytes, reading: Reading) -> None:
        self._asked[_key(path, content)] = reading
        self._changed = True

    def save(self) -> None:
        """Writes the readings, if there are new ones and the folder can be written."""
        if not self._changed:
            return
        kept = {"reader": READER, "readings": {key: vars(one) for key, one in self._asked.items()}}
        beside = self.path.with_name(f"{self.path.name}.{os.getpid()}")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            beside.write_text(json.dumps(kept), encoding="utf-8")
            beside.replace(self.path)
        except OSError:
            beside.unlink(missing_ok=True)  # it only saves time


def memo_of(root: Path) -> Memo:
    """The memo of a repository; temporary copies of it use that of the main one."""
    return Memo(Path(os.environ.get("DVC_ROOT") or root) / ".dvc" / "tmp" / "millrace" / "code" / "modules.json")


def _key(path: str, content: bytes) -> str:
    return f"{path} {hashlib.sha256(content).hexdigest()[:24]}"
