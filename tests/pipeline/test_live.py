"""The live page: what it shows of a training that is writing its files, and who may ask for it."""

import json
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path

import pytest

from pipeline import live
from stages.errors import BadInput
from stages.train.probes import HEADER
from tests.stages.browser import Browser

ROWS = "step,tokens,loss,loss_smooth,lr,grad_norm,validation_loss\n0,0,,,,,5.8\n1,32,5.7,5.7,0.1,1.0,\n"
NEXT = "2,64,5.5,5.6,0.2,0.5,5.4\n"
LOG = "step 1 tokens 32 loss 5.7 tokens/s 900 memory 0.8 GiB waiting 0.01%\n"


class Training:
    """One whose files the test writes."""

    running = True


@pytest.fixture
def training() -> Training:
    return Training()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "loss.csv").write_text(ROWS)
    (tmp_path / "training.log").write_text("")
    return tmp_path


@pytest.fixture
def server(folder: Path, training: Training, monkeypatch: pytest.MonkeyPatch) -> Iterator[live.Server]:
    monkeypatch.setattr(live, "SECONDS_BETWEEN", 0.05)
    with live.served(folder, 0, lambda: training.running) as server:
        yield server


def answer(server: live.Server, path: str, host: str | None = None) -> tuple[int, str]:
    connection = HTTPConnection("127.0.0.1", server.server_port)
    connection.request("GET", path, headers={"Host": host} if host else {})
    found = connection.getresponse()
    return found.status, found.read().decode()


def test_it_shows_what_is_written_to_its_end(folder: Path, server: live.Server, training: Training) -> None:
    with (folder / "loss.csv").open("a") as file:
        file.write(NEXT + "3,96,5.")
    (folder / "training.log").write_text(LOG)
    status, text = answer(server, "/live.json")
    found = json.loads(text)
    assert status == 200 and found["live"] and "step 2, 64 tokens" in found["head"]
    assert found["charts"]["tr-loss"]["traces"][0]["y"] == [5.7, 5.5]
    assert found["charts"]["tr-speed"]["traces"][0]["y"] == [900] and "tr-mfu" not in found["charts"]
    assert "5.4000 at step 2" in found["figures"]
    training.running = False
    found = json.loads(answer(server, "/live.json")[1])
    assert not found["live"] and "It was interrupted; the same command goes on." in found["head"]


def test_only_this_machine_is_answered(server: live.Server) -> None:
    assert server.server_address[0] == "127.0.0.1"
    assert answer(server, "/live.json", f"localhost:{server.server_port}")[0] == 200
    assert answer(server, "/live.json", f"elsewhere.example:{server.server_port}")[0] == 403
    assert answer(server, "/params.yaml")[0] == 404
    with pytest.raises(BadInput, match=f"--port {server.server_port}: Address already in use; give another"):
        live.served(Path(), server.server_port, lambda: True).__enter__()


def test_charts_grow_where_they_are_and_the_open_tab_stays_open(
    folder: Path, server: live.Server, training: Training, tmp_path_factory: pytest.TempPathFactory
) -> None:
    browser = Browser(tmp_path_factory.mktemp("profile"))
    browser.send("Page.navigate", url=server.address)
    browser.until("typeof tabs !== 'undefined' && !!byId('tr-loss').data")
    assert browser.run("location.hash") == "#training" and browser.run("byId('tr-dead_units').hidden")
    browser.run("byId('tab-data').click()")
    with (folder / "loss.csv").open("a") as file:
        file.write(NEXT)
    (folder / "probes.csv").write_text(HEADER + "2,0,1.5,0.2,0.002,3.5,0.25\n")
    browser.until("document.querySelector('h1').textContent === 'step 2, 64 tokens'")
    assert browser.run("location.hash") == "#data"
    assert "This comes after the training" in browser.run("byId('panel-data').textContent")
    browser.run("byId('tab-training').click()")
    browser.until("byId('tr-loss').data[0].x.length === 2 && byId('tr-dead_units').data[0].y[0] === 0.25")
    (folder / "metrics.json").write_text("{}")
    training.running = False
    browser.until("byId('live').textContent === 'It has ended.'")
    assert browser.problems == [] and all(one.startswith((server.address, "blob:")) for one in browser.requests)
    browser.close()
