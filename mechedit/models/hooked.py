"""Any decoder as a hooked model: raw weights, exact logits, hooks that cannot fail silently.

`load_model` gives a `HookedModel`: TransformerLens' `TransformerBridge` around the plain Hugging Face model, with
the names of TransformerLens (`resid_pre`, `pattern`, `W_O`, ...) and the checkpoint's own weights. Nothing is folded
or centred, so an edit and its attribution speak of the same numbers, and there is one copy of the weights.

`HookedModel` adds to `BridgedModel` (`mechedit.models.bridged`: text, padding, passes, hooks, weights) what runs on
one: generation (`mechedit.models.generation`), the residual view (`mechedit.models.residual`) and loading, after which
the model is checked (`mechedit.models.selfcheck`).

Attention runs in the `eager` implementation, in the Hugging Face model and in the bridge: the fused ones never hold
the attention pattern (`mechedit.models.loading`).
"""

from __future__ import annotations

from pathlib import Path
from types import MethodType
from typing import Any, Self

import torch
from transformer_lens.model_bridge import TransformerBridge
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from experiments.progress import waiting
from mechedit.models.architecture import refuse_processed
from mechedit.models.bridged import BridgedModel, Prompts
from mechedit.models.generation import generate
from mechedit.models.loading import Checkpoint, DeviceMap, load_checkpoint, take_over
from mechedit.models.refusals import refused
from mechedit.models.residual import ResidualView, view_residual
from mechedit.models.saving import save_plain
from mechedit.models.selfcheck import check_loaded
from reports.errors import InputError

__all__ = ["HookedModel", "load_model"]


def load_model(
    name: str | Path | PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    device: str = "auto",
    dtype: str | torch.dtype = "float32",
    device_map: DeviceMap | None = None,
    prefix: str | None = None,
    chat: bool = False,
) -> HookedModel:
    """Load an embedded model ("factworld", "factworld-llama"), a local folder or GGUF file, or a Hugging Face id.

    Or take over a Hugging Face model in memory, with its tokenizer: `load_model(model, tokenizer)`. Its weights are
    shared and not copied, and keep their device and dtype; the model itself gets the hooks, goes to evaluation mode and
    to eager attention, and its parameters no longer require gradients.

    A local folder or file causes no network traffic. Weights are read from safetensors or GGUF only, and a checkpoint's
    own code is never run. The weights of a GGUF file (extra `gguf`) are dequantised, and `model.quantization` says how
    they were stored. "smollm2" (extra `real`) is a pre-trained model of 135 million weights, in 4 bits.

    Memory at the peak: the weights and, for GPT-2, one more copy of its embeddings, which TransformerLens joins once
    while it looks for hooks: 1.06 times the weights on GPT2-XL's shape (measured), by their sizes 1.3 for GPT2-small.
    In another dtype than the file's, the pages of the file come on top, which the system may drop.

    A small forward pass checks the result: logits equal the plain model's, every hook that this package reads fires,
    sub-layers' outputs add up to the logits, and neurons read what they are said to read.

    Args:
        name: An embedded model, a folder, a GGUF file or an id; or the model in memory.
        tokenizer: Of a model in memory; every other brings its own.
        device: "auto" (CUDA where there is one), "cpu", "cuda", "cuda:1".
        dtype: "float32", "float64", "bfloat16" or "float16".
        device_map: For a model that fits no single device: "auto" spreads its layers over all GPUs by accelerate; or a
            dict of modules and devices, as transformers takes it. Hooks and views see everything on the device of
            the unembedding.
        prefix: A special token (or several) that stands in front of every text, as "<|endoftext|>": some models know
            more behind it; `mechedit diagnose` says which.
        chat: Every text is the user's message of a conversation, in the tokenizer's own chat template, and what is
            scored behind it opens the assistant's turn.

    Raises:
        InputError: No such folder and no id that can be fetched; no tokenizer files; an architecture that cannot be
            bridged, or a property of it that attribution could not answer for (`docs/models.md`); weights missing;
            not enough memory (both sizes); a GGUF file that is damaged, or of which transformers would leave something
            out; a prefix that is no special token, or chat without a chat template.
        IntegrityError: The bridged model does not compute what the plain one does.

    >>> load_model("./no/such/folder")
    Traceback (most recent call last):
        ...
    reports.errors.InputError: model: expected factworld, ..., found './no/such/folder': no such folder
    """
    with waiting(f"loading {name if isinstance(name, str | Path) else type(name).__name__}"):
        loaded, shown = _loaded(name, tokenizer, device, dtype, device_map)
        with refused(f"{loaded.bridge.cfg.architecture} cannot be read"):
            model = HookedModel(
                loaded.bridge, loaded.tokenizer, name=shown, source=loaded.source, prefix=prefix, chat=chat
            )
            check_loaded(model, probe=loaded.probe, reference=loaded.reference)
    return model


def _loaded(
    name: str | Path | PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    device: str,
    dtype: str | torch.dtype,
    device_map: DeviceMap | None,
) -> tuple[Checkpoint, str]:
    """The checkpoint, and what results call it."""
    if not isinstance(name, str | Path):
        if (device, dtype, device_map) != ("auto", "float32", None):
            raise InputError(
                "device, dtype, device_map: a model in memory keeps its own; move it first, and leave them out"
            )
        loaded = take_over(name, tokenizer)
        return loaded, Path(loaded.source.removeprefix("memory:")).name
    if tokenizer is not None:
        raise InputError(f"tokenizer: {name} brings its own; leave it out, or give the model in memory")
    loaded = load_checkpoint(str(name), device=device, dtype=dtype, device_map=device_map)
    named = loaded.source.startswith(("embedded:", "installed:")) or "@" in loaded.source
    return loaded, str(name) if named else Path(name).name


class HookedModel(BridgedModel):
    """A decoder with hooks, its tokenizer and its raw weights. Get one from `load_model` or `from_bridge`.

    The model is in evaluation mode, and no parameter requires a gradient. Its attributes and what it can do without
    generation are those of `BridgedModel`.

    Hooks nest: a model inside its own `hooks(...)` block is an edited model with this same interface, and whatever
    is called on it, `residual_view` and `generate` too, runs with those hooks.
    """

    #: The model that this one was derived from by an edit (`mechedit.editors.base.derive`).
    base: HookedModel | None = None

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        vars(self.hf)["save_pretrained"] = MethodType(
            save_plain, self.hf
        )  # a copy of the module gets one of its own

    @classmethod
    def from_bridge(
        cls, bridge: TransformerBridge, tokenizer: PreTrainedTokenizerBase, *, name: str | None = None
    ) -> Self:
        """Wrap a `TransformerBridge` of yours: it is set to evaluation mode and its gradients are switched off.

        Raises:
            InputError: Weights are folded or centred, or the bridge is in compatibility mode: attribution and edits
                would speak of other numbers than the checkpoint's. The message has the call that gives a raw bridge.
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
        seed and place in the list whatever the batch size. Hooks attached earlier remain active: with the KV cache
        they see [batch, pos, d] for the prompts and then [batch, 1, d] for each new token, so a hook should address
        the last position as −1 and never count from the left.

        Args:
            prompts: Texts, lists of messages, or ids [T] of each.
            max_new_tokens: The largest number of tokens of a text.
            top_k: How many of the likeliest tokens are drawn from; None is greedy.
            seed: Seeds the generator of every prompt, with its place in the list.
            temperature: Divides the logits before sampling.
            batch_size: Prompts that run together.

        Raises:
            InputError: An option below its least value, or prompt and new tokens longer than the model's context.
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

    def gate_fired(self, prompts: Prompts, *, batch_size: int = 64) -> list[bool] | None:
        """For each prompt whether the gate of an edit opens; None where no edit of this model has a gate."""
        return (
            None if self.base is None else self.base.gate_fired(self.encode(prompts), batch_size=batch_size)
        )

    def residual_view(self, ids: torch.Tensor) -> ResidualView:
        """The residual stream at the last position of ids [T], and what every sub-layer wrote (`ResidualView`)."""
        return view_residual(self, ids)
