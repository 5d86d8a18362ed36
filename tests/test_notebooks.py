"""The notebooks run, on the outputs of a small run."""

import shutil
from pathlib import Path

import pytest

from tests.stages.test_evaluate import SMALL, evaluate, write_workspace

NOTEBOOKS = sorted((Path(__file__).parents[1] / "docs/notebooks").glob("*.ipynb"))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("workspace")
    write_workspace(root, SMALL)
    evaluate(root)
    return root


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_to_its_end(notebook: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed (extra `test`)")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed (extra `test`)")
    import nbformat

    folder = root / "docs/notebooks"
    folder.mkdir(parents=True)
    shutil.copy(notebook, folder)
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    opened = nbformat.read(notebook, as_version=4)
    assert not any(cell.get("outputs") for cell in opened.cells), "outputs do not belong into git"
    client = nbclient.NotebookClient(opened, timeout=120, resources={"metadata": {"path": str(folder)}})
    client.execute()
    said = [output for cell in opened.cells if cell.cell_type == "code" for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in said), "there are pictures"
    assert any("Returns <b>" in output.get("text", "") for output in said), "there are samples"
