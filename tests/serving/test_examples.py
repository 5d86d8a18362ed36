"""The examples run as they stand."""

import runpy
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_inference(folder, capsys):
    runpy.run_path(str(EXAMPLES / "inference_demo.py"))["main"](str(folder), "Returns the", "A sparse")
    first, second = capsys.readouterr().out.split("Returns the|")[1].split("A sparse|")
    assert first.strip() and second.strip()


def test_the_client(server, capsys):
    runpy.run_path(str(EXAMPLES / "openai_client_demo.py"))["main"](f"{server.url}/v1")
    out = capsys.readouterr().out
    assert "model: millrace" in out
    assert "refused: " in out and "shorten it" in out
    assert out.count("at once:") == 4
