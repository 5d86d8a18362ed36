"""A Millrace decoder as a model of transformers. This file travels with an export that has no twin there.

    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)

The files beside it are Millrace's own `model/`, as they were when the model was exported. Generation reads
the whole text at every step; padding stands on the left, as tokenizer_config.json says.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from model.config import ModelConfig
from model.decoder import Decoder


class MillraceConfig(PretrainedConfig):
    """`model`: the section of params.yaml; the rest as in every configuration of transformers."""

    model_type = "millrace"

    def __init__(
        self, model: dict[str, Any] | None = None, vocab_size: int = 256, context_length: int = 256, **others: Any
    ):
        self.model, self.vocab_size, self.context_length = model or {}, vocab_size, context_length
        decoder = ModelConfig(**self.model)
        self.num_hidden_layers, self.hidden_size = decoder.n_layers, decoder.hidden_size
        self.num_attention_heads, self.max_position_embeddings = decoder.n_heads, context_length
        super().__init__(**others)


class MillraceForCausalLM(PreTrainedModel, GenerationMixin):
    config_class = MillraceConfig
    base_model_prefix = "decoder"
    main_input_name = "input_ids"

    def __init__(self, config: MillraceConfig):
        super().__init__(config)
        self.decoder = Decoder(ModelConfig(**config.model), config.vocab_size, config.context_length)
        self.post_init()

    def _init_weights(self, module: torch.nn.Module) -> None:
        """Weights come from the file."""

    def get_input_embeddings(self) -> torch.nn.Module:
        return self.decoder.embedding

    def prepare_inputs_for_generation(  # type: ignore[override]
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **others: Any
    ) -> dict[str, Any]:
        return {"input_ids": input_ids, "attention_mask": attention_mask}

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **others: Any,
    ) -> CausalLMOutput:
        """Logits [B, T, V]; with labels, which are shifted here, also the mean loss."""
        segments = positions = None
        if attention_mask is not None and not bool(attention_mask.all()):
            segments = attention_mask.long() - 1  # -1 is padding
            positions = (attention_mask.long().cumsum(dim=-1) - 1).clamp(min=0)
        logits = self.decoder(input_ids, segments, positions)
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())
        return CausalLMOutput(loss=loss, logits=logits)
