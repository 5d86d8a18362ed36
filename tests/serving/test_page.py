"""The chat page in a headless browser: it writes, colours, stops and shows errors. Skipped where there is none."""

import itertools
import json
import shutil
import subprocess
import time
import urllib.request

import pytest
from websockets.sync.client import connect

from tests.serving.servers import until

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")


class Page:
    """A page under the browser's remote debugging protocol."""

    def __init__(self, address: str):
        self.socket, self.numbers = connect(address, max_size=None), itertools.count(1)
        self.requested: list[str] = []

    def call(self, method: str, **params):
        number = next(self.numbers)
        self.socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            said = json.loads(self.socket.recv(timeout=30))
            if said.get("method") == "Network.requestWillBeSent":
                self.requested.append(said["params"]["request"]["url"])
            if said.get("id") == number:
                return said["result"]

    def run(self, script: str):
        return self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)["result"].get(
            "value"
        )

    def send(self, text: str) -> None:
        self.run(f"$('input').value = {json.dumps(text)}; $('form').requestSubmit()")

    def until(self, script: str) -> None:
        until(lambda: self.run(script), seconds=30)


@pytest.fixture(scope="module")
def page(server, tmp_path_factory):
    profile = tmp_path_factory.mktemp("browser")
    command = [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
               "--no-first-run", "--remote-debugging-port=0", f"--user-data-dir={profile}"]  # fmt: skip
    process = subprocess.Popen([*command, "about:blank"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until((profile / "DevToolsActivePort").exists, seconds=60)
        time.sleep(0.2)
        port = (profile / "DevToolsActivePort").read_text().split()[0]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json") as answer:
            address = next(tab["webSocketDebuggerUrl"] for tab in json.load(answer) if tab["type"] == "page")
        page = Page(address)
        page.call("Network.enable")
        page.call("Page.navigate", url=server.url + "/")
        page.until("document.title === 'millrace'")
        yield page
        page.socket.close()
    finally:
        process.kill()
        process.wait()


def test_an_answer_streams_in_and_its_tokens_show_their_probabilities(page, server):
    page.run("$('mode').value = 'chat'; $('most').value = 30; $('seed').value = 3")
    page.send("Hello")
    page.until("document.querySelector('.rate') !== null")
    assert page.run("document.querySelector('.rate').textContent").startswith("30 tokens, ")
    first = page.run("document.querySelector('.model').textContent.replace(/\\d+ tokens, .*/, '')")
    assert page.run("messages.length") == 2
    tip = page.run("document.querySelector('.token').dataset.tip")
    assert tip.count("\n") == 5 and "%" in tip
    page.run("""document.querySelector('.token').dispatchEvent(new MouseEvent('mousemove',
        {bubbles: true, clientX: 200, clientY: 200}))""")
    assert page.run("$('tip').style.display") == "block"
    page.run("$('clear').click()")
    page.send("Hello")
    page.until("document.querySelector('.rate') !== null")
    second = page.run("document.querySelector('.model').textContent.replace(/\\d+ tokens, .*/, '')")
    assert first == second, "the same seed"
    assert all(url.startswith(server.url) for url in page.requested), "nobody else is asked"


def slow_down(server, monkeypatch):
    """An answer takes long enough to be interrupted."""
    real = server.worker.engine.step
    monkeypatch.setattr(server.worker.engine, "step", lambda: (time.sleep(0.05), real()))


def test_stop_ends_an_answer_and_frees_its_row(page, server, monkeypatch):
    slow_down(server, monkeypatch)
    page.run("$('clear').click(); $('most').value = 90; $('mode').value = 'text'")
    page.send("Returns")
    page.until("document.querySelector('.model .token') !== null")
    page.run("$('stop').click()")
    until(lambda: server.worker.engine.idle, seconds=2)
    page.until("running === null")
    assert page.run("document.querySelector('.error') === null")


def test_clear_during_an_answer_leaves_nothing_of_it(page, server, monkeypatch):
    slow_down(server, monkeypatch)
    page.run("$('clear').click(); $('most').value = 60; $('mode').value = 'chat'")
    page.send("Hello")
    page.until("document.querySelector('.model .token') !== null")
    page.run("$('clear').click()")
    page.until("running === null")
    assert page.run("messages.length") == 0


def test_an_error_is_shown(page):
    page.run("$('clear').click(); $('most').value = 5000")
    page.send("Hello")
    page.until("document.querySelector('.error') !== null")
    assert "the context is 128 tokens" in page.run("document.querySelector('.error').textContent")
