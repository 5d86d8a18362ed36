"""Fixtures: a tiny repository of one's own, and one Prefect server for all tests."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline import environment
from tests.pipeline import ablation_repository
from tests.pipeline.tiny_repository import write_repository


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_repository(tmp_path_factory.mktemp("template") / "repository")


@pytest.fixture
def repository(template: Path, tmp_path: Path) -> Path:
    """The tiny repository, committed, nothing run."""
    return shutil.copytree(template, tmp_path / "repository")


@pytest.fixture(scope="session")
def template_of_ablations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ablation_repository.write_repository(tmp_path_factory.mktemp("ablations") / "repository")


@pytest.fixture
def abl(template_of_ablations: Path, tmp_path: Path) -> Path:
    """A repository with the params of Millrace whose stages do no work, committed, run once."""
    return shutil.copytree(template_of_ablations, tmp_path / "repository")


@pytest.fixture
def behave(repository: Path) -> Callable[..., None]:
    """Tells a stage what to do in its next runs: "fail 2", "meet right", or nothing."""

    def tell(stage: str, wish: str = "") -> None:
        path = repository / "behaviour" / stage
        path.write_text(wish) if wish else path.unlink(missing_ok=True)

    return tell


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Prefect server with a home of its own; flows of the tests report to it."""
    changed = {"PREFECT_HOME": str(tmp_path_factory.mktemp("prefect")), "PREFECT_API_URL": ""}
    before = {name: os.environ.get(name) for name in changed}
    os.environ.update(changed)
    environment.prepare()
    from pipeline.scheduling.server import prefect_api

    try:
        with prefect_api() as url:
            yield url
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
