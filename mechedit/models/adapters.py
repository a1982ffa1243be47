"""What TransformerLens says of an architecture before a weight is read: its adapter for a config.

Booting a bridge does more: for a model that reads images, TransformerLens installs torchvision by itself, with pip,
into the running interpreter. So its adapter is asked first, and no such model ever reaches it.
"""

from __future__ import annotations

from typing import Any

import torch
from transformer_lens.factories.architecture_adapter_factory import (
    SUPPORTED_ARCHITECTURES,
    ArchitectureAdapterFactory,
)
from transformer_lens.model_bridge.sources import build_bridge_config_from_hf
from transformers import PreTrainedConfig

__all__ = ["adapter_of", "objection"]


def adapter_of(config: PreTrainedConfig, architecture: str) -> Any:
    """TransformerLens' adapter: the names of the modules, and how a block is composed (`component_mapping`).

    Raises:
        ValueError: There is none for this architecture.
    """
    bridged = build_bridge_config_from_hf(config, architecture, architecture, torch.float32)
    return ArchitectureAdapterFactory.select_architecture_adapter(bridged)


def objection(config: PreTrainedConfig, architecture: str) -> str | None:
    """What stands in the way according to the adapter, in words, or None.

    >>> from transformers import BloomConfig, LlamaConfig
    >>> objection(LlamaConfig(), "LlamaForCausalLM"), objection(BloomConfig(), "BloomForCausalLM")
    (None, 'its attention has linear biases (ALiBi)')
    """
    if architecture not in SUPPORTED_ARCHITECTURES:
        return "TransformerLens has no bridge for it"
    cfg = adapter_of(config, architecture).cfg
    if any(getattr(cfg, name, False) for name in ("is_multimodal", "is_audio_model", "is_visual_model")):
        return "it reads more than text"
    if cfg.positional_embedding_type == "alibi":
        return "its attention has linear biases (ALiBi)"
    return None
