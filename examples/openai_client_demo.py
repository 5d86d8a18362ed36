"""OpenAI's own client against `millrace serve`: whole answers, a stream, and several requests at once.

    millrace serve &
    python examples/openai_client_demo.py http://127.0.0.1:8000/v1

Wants the package openai (`pip install millrace[test]`).
"""

from __future__ import annotations

import asyncio
import sys

import openai


def main(address: str = "http://127.0.0.1:8000/v1", key: str = "none") -> None:
    with openai.OpenAI(base_url=address, api_key=key) as client:
        [model] = client.models.list().data
        print("model:", model.id)

        text = client.completions.create(
            model=model.id, prompt="Returns the number of", max_tokens=24, temperature=0, logprobs=1
        )
        print("text:", repr(text.choices[0].text), text.choices[0].finish_reason, text.usage)

        stream = client.chat.completions.create(
            model=model.id, messages=[{"role": "user", "content": "What is an array?"}], max_tokens=24, seed=7,
            stream=True, stream_options={"include_usage": True}, extra_body={"min_p": 0.05},
        )  # fmt: skip
        print("chat: ", end="")
        for chunk in stream:
            print(
                chunk.choices[0].delta.content or "" if chunk.choices else f" [{chunk.usage.total_tokens} tokens]",
                end="",
            )
        print()

        try:
            client.completions.create(model=model.id, prompt="word " * 100_000)
        except openai.BadRequestError as error:
            print("refused:", error.message)
    asyncio.run(several(address, key, model.id))


async def several(address: str, key: str, model: str) -> None:
    """Four requests that run in one batch."""
    async with openai.AsyncOpenAI(base_url=address, api_key=key) as client:
        prompts = ["Returns", "Computes", "A sparse", "If"]
        asked = [client.completions.create(model=model, prompt=p, max_tokens=12, seed=1) for p in prompts]
        for prompt, answer in zip(prompts, await asyncio.gather(*asked), strict=True):
            print("at once:", prompt + answer.choices[0].text.replace("\n", " "))


if __name__ == "__main__":
    main(*sys.argv[1:])
