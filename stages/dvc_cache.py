"""DVC's cache, looked at without DVC, which takes a second to start: where it is, and what of a stage it still has."""

from __future__ import annotations

import configparser
import os
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError


def way_back(root: Path, stage: str) -> str:
    """A sentence for behind the failure of a stage, whose outputs DVC removed before it ran; empty where there were
    none to bring back: on a first run, in a fresh clone, or outside of DVC."""
    if not os.environ.get("DVC_STAGE") or not restorable(root, stage):
        return ""
    return f". Earlier outputs are in the DVC cache: `dvc checkout {stage}` brings them back"


def restorable(root: Path, stage: str) -> bool:
    """Whether the cache has every output of a stage that dvc.lock names, and there are some."""
    try:
        locked = YAML(typ="safe").load((root / "dvc.lock").read_text(encoding="utf-8"))
        hashes = [out["md5"] for out in locked["stages"][stage]["outs"]]
    except (OSError, YAMLError, LookupError, TypeError):
        return False
    files = cache_in(root) / "files" / "md5"
    return bool(hashes) and all((files / known[:2] / known[2:]).exists() for known in hashes)


def cache_in(root: Path) -> Path:
    """Where DVC's settings put the cache of a repository."""
    found = _settings(root, "cache", "dir")
    return found[0].parent / found[1] if found else root / ".dvc" / "cache"


def setting(root: Path, section: str, key: str) -> str:
    """A setting of DVC, read without it; empty where it is not set."""
    found = _settings(root, section, key)
    return found[1] if found else ""


def _settings(root: Path, section: str, key: str) -> tuple[Path, str] | None:
    """The file that sets it last, and the value."""
    home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    own = root / ".dvc"
    found = None
    for path in (Path("/etc/xdg/dvc/config"), home / "dvc" / "config", own / "config", own / "config.local"):
        settings = configparser.ConfigParser(interpolation=None, strict=False)
        try:
            # DVC writes keys with an indent, which configparser would take for the rest of the line before
            settings.read_string("\n".join(line.strip() for line in path.read_text(encoding="utf-8").splitlines()))
        except (OSError, configparser.Error):
            continue
        if chosen := settings.get(section, key, fallback=""):
            found = (path, chosen.strip("\"'"))
    return found
