"""The model that a configuration or the options of a command name."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from mechedit.models.hooked import HookedModel, load_model

__all__ = ["load", "load_each"]

#: Weights of a model that is too small to gain by a second thread, and stalls on one where cores are shared.
SMALL = 20_000_000


def load(options: Any) -> HookedModel:
    """The model, device and dtype of `options` or of a configuration; a small model on the CPU runs in one thread."""
    model = load_model(
        options.model,
        device=options.device,
        dtype=options.dtype,
        prefix=options.prefix,
        chat=bool(options.chat),
    )
    if model.device.type == "cpu" and sum(weight.numel() for weight in model.hf.parameters()) < SMALL:
        torch.set_num_threads(1)
    return model


def load_each(config: Any) -> list[HookedModel]:
    """The models of `config.models`, each as `load`."""
    return [load(SimpleNamespace(**{**vars(config), "model": name})) for name in config.models]
