"""The model as MLflow loads it. This file travels with every registered version and stands alone.

    model = mlflow.pyfunc.load_model("models:/millrace@champion")
    model.predict(["Returns the number of"], params={"max_new_tokens": 32})

gives a list with the continuation of each prompt. With temperature 0, the default, the most probable
token is taken; above 0 tokens are drawn, the same ones for the same seed. A text ends where the context does.
"""

from __future__ import annotations

from typing import Any

DEFAULTS = {"max_new_tokens": 64, "temperature": 0.0, "top_p": 1.0, "seed": 0}


class TextGenerator:
    """Continues prompts with the Hugging Face folder at `path`."""

    def __init__(self, path: str):
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=True)
        self.model = AutoModelForCausalLM.from_pretrained(path, local_files_only=True, trust_remote_code=True).eval()

    def predict(self, data: Any, params: dict[str, Any] | None = None) -> list[str]:
        """One continuation for each prompt; MLflow hands lists of prompts over as a data frame of one column."""
        import torch

        options = {**DEFAULTS, **(params or {})}
        batch = self.tokenizer([str(prompt) for prompt in data.iloc[:, 0]], padding=True, return_tensors="pt")
        read, most = batch["input_ids"].shape[1], self.model.config.max_position_embeddings
        if read >= most:
            raise ValueError(f"a prompt of {read} tokens: the context of the model has {most}; shorten it")
        sampling: dict[str, Any] = {"do_sample": False}
        if options["temperature"] > 0:
            sampling = {"do_sample": True, "temperature": options["temperature"], "top_p": options["top_p"]}
        torch.manual_seed(options["seed"])
        new_tokens = min(options["max_new_tokens"], most - read)
        written = self.model.generate(**batch, max_new_tokens=new_tokens, **sampling)
        return self.tokenizer.batch_decode(written[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)


def _load_pyfunc(path: str) -> TextGenerator:
    return TextGenerator(path)
