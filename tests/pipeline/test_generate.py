"""`millrace generate` and `millrace chat` in a terminal."""

import pytest
from click.testing import CliRunner

from pipeline.cli import cli
from pipeline.generate import ids_that_fit, unescaped, write
from serving.request import Request
from stages.errors import BadInput
from tests.serving.conftest import engine, exported, folder  # noqa: F401


def run(*arguments: str, typed: str = "") -> str:
    result = CliRunner().invoke(cli, arguments, input=typed, catch_exceptions=True)
    if isinstance(result.exception, BadInput):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def test_the_same_seed_gives_the_same_text(folder):  # noqa: F811
    first, second, other = (
        run("generate", "Returns the", "--model", str(folder), "-n", "20", "--seed", seed) for seed in ("1", "1", "2")
    )
    assert first == second != other
    assert first.startswith("Returns the")


def test_stop_ends_the_text_before_it(folder):  # noqa: F811
    options = ("--model", str(folder), "-n", "30", "--temperature", "0")
    text = run("generate", "Returns the", *options)
    stop = text[len("Returns the") + 5 :][:3]
    assert run("generate", "Returns the", *options, "--stop", stop).rstrip("\n") == text[: text.index(stop, 11)]


def test_backslashes_in_a_stop_string():
    assert unescaped(r"é\n漢\t\r") == "é\n漢\t\r"
    assert unescaped(r"\\n \x \q") == r"\n \x \q"


def test_a_prompt_may_take_more_than_one_step_to_read(engine, capsys):  # noqa: F811
    text = write(engine, Request((5,) * (3 * engine.chunk), 4))
    assert text
    assert capsys.readouterr().out == text


def test_what_cannot_be_is_refused(folder, tmp_path):  # noqa: F811
    with pytest.raises(BadInput, match="--top-p is -1"):
        run("generate", "x", "--model", str(folder), "--top-p", "-1")
    with pytest.raises(BadInput, match="shorten it"):
        run("generate", "word " * 200, "--model", str(folder))
    with pytest.raises(BadInput, match=r"no config\.json"):
        run("generate", "x", "--model", str(tmp_path))
    with pytest.raises(BadInput, match="set keys"):
        run("serve", "--model", str(folder), "--host", "0.0.0.0")


def test_a_conversation(folder):  # noqa: F811
    typed = "/temp 0\nHello\n/seed x\n/top_p 2\n/unknown\n" + "And again\n" * 4 + "/reset\nHello\n/quit\n"
    out = run("chat", "--model", str(folder), "-n", "10", typed=typed)
    assert "temperature 0, top_p 0.95, seed None" in out
    assert "must be a number from 0 to 9.22337e+18, not 'x'" in out
    assert "must be a number from 0 to 1, not '2'" in out
    assert "/temp T" in out
    first, last = (answer for answer in out.split("> ") if answer.startswith("Hello\n"))
    assert len(first) > len("Hello\n\n")
    assert first == last, "after /reset it is as at first"


@pytest.mark.parametrize("system", [[], [{"role": "system"}]])
def test_a_conversation_that_is_too_long_begins_with_a_question(system):
    for most in range(1, 8):
        messages = [*system, *({"role": role} for role in ("user", "assistant", "user", "assistant", "user"))]
        ids = ids_that_fit(lambda messages: [0] * len(messages), messages, most)
        assert len(ids) <= max(most, 1)
        assert next(message["role"] for message in messages if message["role"] != "system") == "user"
