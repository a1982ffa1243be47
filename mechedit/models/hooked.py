"""Any decoder as a hooked model: raw weights, exact logits, hooks that cannot fail silently.

`load_model` gives a `HookedModel`: TransformerLens' `TransformerBridge` around the plain Hugging Face model, with
the names of TransformerLens (`resid_pre`, `pattern`, `W_O`, ...) and the checkpoint's own weights. Nothing is folded
or centred, so an edit and its attribution speak of the same numbers, and there is one copy of the weights.

What it takes care of, because the bridge does not:

- text becomes ids as the checkpoint's tokenizer does it; the bridge would add a BOS of its own;
- a batch is always padded with its mask and with positions that follow the mask;
- target tokens are read off prompt + target, because `tok(" Paris")` alone is another segmentation;
- hooks are checked (`mechedit.models.hooking`), the loaded model is too (`mechedit.models.selfcheck`).

Attention runs in the `eager` implementation, in the Hugging Face model and in the bridge: the fused ones never hold
the attention pattern (`mechedit.models.loading`).
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Self

import torch
from transformer_lens.model_bridge import TransformerBridge
from transformers import PreTrainedTokenizerBase

from mechedit.models.architecture import refuse_processed
from mechedit.models.bridged import BridgedModel, Prompts
from mechedit.models.generation import generate
from mechedit.models.loading import load_checkpoint
from mechedit.models.residual import ResidualView, view_residual
from mechedit.models.selfcheck import check_loaded
from mechedit.models.weights import FinalNorm, ModelShape

__all__ = ["FinalNorm", "HookedModel", "ModelShape", "ResidualView", "load_model"]

logger = logging.getLogger(__name__)


def load_model(
    name: str | Path, *, device: str = "auto", dtype: str | torch.dtype = "float32"
) -> HookedModel:
    """Load an embedded model ("factworld", "factworld-llama"), a local folder or a Hugging Face id.

    device: "auto" (CUDA where there is one), "cpu", "cuda", "cuda:1"; dtype: "float32", "float64", "bfloat16",
    "float16". A local folder causes no network traffic. Safetensors only; a checkpoint's own code is never run.

    Memory at the peak: the weights and, for GPT-2, one more copy of its embeddings, which TransformerLens joins once
    while it looks for hooks. Measured on GPT2-XL's shape: 1.06 times the weights. The smaller the model, the larger
    the embeddings' share: by their sizes 1.15 for GPT2-medium and 1.3 for GPT2-small. In another dtype than the
    file's, the pages of the file come on top, which the system may drop.

    A small forward pass checks the result: the bridge's logits equal the plain model's, every hook that this
    package reads fires, and the sub-layers' outputs add up to the logits.

    Raises:
        InputError: no such folder and no id that can be fetched; no tokenizer files; an architecture that cannot be
            bridged or that is no sequential pre-norm decoder; weights missing; not enough memory (both sizes).
        IntegrityError: the bridged model does not compute what the plain one does.

    >>> load_model("./no/such/folder")
    Traceback (most recent call last):
        ...
    reports.errors.InputError: model: expected factworld, ..., found './no/such/folder': no such folder
    """
    loaded = load_checkpoint(str(name), device=device, dtype=dtype)
    shown = str(name) if loaded.source.startswith("embedded:") or "@" in loaded.source else Path(name).name
    model = HookedModel(loaded.bridge, loaded.tokenizer, name=shown, source=loaded.source)
    check_loaded(model, probe=loaded.probe, reference=loaded.reference)
    return model


class HookedModel(BridgedModel):
    """A decoder with hooks, its tokenizer and its raw weights. Get one from `load_model` or `from_bridge`.

    name, source (where it came from), bridge (TransformerLens), hf (the Hugging Face module, which the bridge has
    put its hooks into), tokenizer, shape, device, dtype. Evaluation mode, no parameter requires a gradient.

    Hooks nest: a model inside its own `hooks(...)` block is an edited model with this same interface, and whatever
    is called on it, `residual_view` and `generate` too, runs with those hooks on.
    """

    @classmethod
    def from_bridge(
        cls, bridge: TransformerBridge, tokenizer: PreTrainedTokenizerBase, *, name: str | None = None
    ) -> Self:
        """Wrap a `TransformerBridge` of yours: it is set to evaluation mode and its gradients are switched off.

        Raises `InputError` where weights are folded or centred, or the bridge is in compatibility mode: attribution
        and edits would speak of other numbers than the checkpoint's. The message has the call that gives a raw one.
        """
        refuse_processed(bridge)
        shown = name or str(bridge.cfg.model_name)
        model = cls(bridge, tokenizer, name=shown, source=f"bridge:{bridge.cfg.model_name}")
        check_loaded(model)
        return model

    def generate(
        self,
        prompts: Prompts,
        *,
        max_new_tokens: int,
        top_k: int | None = None,
        seed: int = 0,
        temperature: float = 1.0,
        batch_size: int = 32,
    ) -> list[str]:
        """The text that follows each prompt (without the prompt), up to the end token or `max_new_tokens`.

        Greedy without `top_k`, else sampled from the `top_k` likeliest tokens at `temperature`, the same for the same
        seed and place in the list whatever the batch size. Hooks on the model stay on: with the KV cache they see
        [batch, pos, d] for the prompts and then [batch, 1, d] for each new token, so a hook should address
        the last position as −1 and never count from the left.
        """
        return generate(
            self,
            self.encode(prompts),
            max_new_tokens=max_new_tokens,
            top_k=top_k,
            seed=seed,
            temperature=temperature,
            batch_size=batch_size,
        )

    def residual_view(self, ids: torch.Tensor) -> ResidualView:
        """The residual stream at the last position of ids [T], and what every sub-layer wrote (`ResidualView`)."""
        return view_residual(self, ids)
