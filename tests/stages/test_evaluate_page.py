"""The page in a headless Chromium: every tab, keyboard, hover, small screens, dark and light, nothing asked outside."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from model.config import ModelConfig
from tests.stages.browser import Browser, chromium
from tests.stages.test_evaluate import evaluate, write_workspace

TABS = ["results", "training", "data", "tokenizer", "attention", "embedding", "samples", "provenance"]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    chromium()
    root = tmp_path_factory.mktemp("workspace")
    write_workspace(root, ModelConfig(n_layers=2, hidden_size=16, n_heads=2, n_kv_heads=1, layer_pattern="full+swa"))
    return evaluate(root) / "report.html"


@pytest.fixture(scope="module")
def browser(page: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    browser = Browser(tmp_path_factory.mktemp("profile"))
    browser.open(page)
    yield browser
    browser.close()


def drawn(browser: Browser) -> bool:
    """Whether every chart of the open tab has been drawn."""
    charts = "[...document.querySelectorAll('[role=tabpanel]:not([hidden]) .chart')]"
    return browser.run(f"{charts}.every((one) => !!one.querySelector('.main-svg'))")


def test_every_tab_opens_by_keyboard_and_draws_its_charts_without_a_word_of_complaint(browser):
    browser.run("tabs[0].focus()")
    for name in TABS:
        assert browser.run("document.activeElement.dataset.name") == name
        assert browser.run("[...document.querySelectorAll('[role=tabpanel]')].filter((p) => !p.hidden).length") == 1
        assert browser.run("location.hash") == f"#{name}" and drawn(browser), name
        browser.press("ArrowRight")
    assert browser.run("document.activeElement.dataset.name") == TABS[0], "round and round"
    assert browser.problems == []
    assert not [address for address in browser.requests if not address.startswith(("file:", "data:", "blob:"))]


def test_the_mouse_on_the_map_shows_tokens_and_a_menu_says_the_same_in_words(browser):
    browser.run("byId('tab-attention').click()")
    box = browser.run(
        "(({left, top, width, height}) => [left, top, width, height])"
        "(document.querySelector('#at-map .nsewdrag').getBoundingClientRect())"
    )
    browser.move_to(box[0] + 3, box[1] + box[3] / 3)
    browser.move_to(box[0] + 4, box[1] + box[3] / 3)
    browser.until("!!document.querySelector('#at-map .hovertext')")
    assert "pays" in browser.run("document.querySelector('#at-map .hovertext').textContent")
    browser.run("byId('at-query').value = 1; byId('at-query').dispatchEvent(new Event('change'))")
    assert " to 0 [end]" in browser.run("byId('at-answer').textContent")


def test_a_title_of_the_table_sorts_it_and_a_line_of_it_shows_its_head(browser):
    browser.run("byId('tab-attention').click()")
    cells = "[...byId('at-table').tBodies[0].rows].map((row) => +row.cells[3].textContent)"
    browser.run("byId('at-table').tHead.rows[0].cells[3].querySelector('button').click()")
    assert browser.run(cells) == sorted(browser.run(cells), reverse=True)
    browser.run("byId('at-table').tHead.rows[0].cells[3].querySelector('button').click()")
    assert browser.run(cells) == sorted(browser.run(cells))
    browser.run("byId('at-table').querySelector('[data-layer=\"1\"][data-head=\"1\"]').click()")
    assert browser.run("[byId('at-layer').value, byId('at-head').value]") == ["1", "1"]
    assert "layer 1, head 1" in browser.run("byId('at-map').layout.title.text")
    assert browser.run("byId('at-layer').selectedOptions[0].textContent") == "1 (swa)"


def test_points_of_the_embedding_have_names_and_neighbours(browser):
    browser.run("byId('tab-embedding').click()")
    browser.run("byId('em-token').selectedIndex = 3; byId('em-token').dispatchEvent(new Event('change'))")
    assert browser.run("byId('em-neighbours').tBodies[0].rows.length") == 8
    assert "times" in browser.run("byId('em-map').data[0].hovertext[3]")
    browser.run("byId('em-method').value = 'pca'; byId('em-method').dispatchEvent(new Event('change'))")
    assert "of the spread" in browser.run("byId('em-map').layout.xaxis.title.text")


def test_colours_follow_the_system_and_nothing_is_wider_than_a_telephone(browser):
    browser.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    browser.until("byId('em-map').layout.paper_bgcolor === '#14171b'")
    browser.resize(390, 844)
    for name in TABS:
        browser.run(f"byId('tab-{name}').click()")
        assert browser.run("document.documentElement.scrollWidth <= innerWidth"), name
    assert browser.problems == []
