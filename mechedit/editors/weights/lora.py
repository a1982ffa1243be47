"""LoRA: low-rank adapters in every layer's attention, trained on the new fact (by the package `peft`).

Source: Hu et al., ICLR 2022 (arXiv 2106.09685); as an editor: EasyEdit's `lora`. For each targeted weight W,

    W' = W + (alpha / rank) B A,    minimise the mean over facts and tokens of −log p(new object | rewrite prompt)

by Adam over A and B. The adapters live in a second module tree of the same class that shares the checkpoint's memory,
because `peft` replaces modules and the hooked model is to keep its own: no weight is copied, and the trained product
is then written into the weights like any other change, of rank `rank`.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from accelerate import dispatch_model
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import PreTrainedModel

from experiments.progress import counted
from mechedit.data.facts import FactEdit
from mechedit.editors.base import as_facts
from mechedit.editors.defaults import AUTO, Table
from mechedit.editors.settings import resolved
from mechedit.editors.weights.subject import target_places
from mechedit.editors.weights.weight_edit import LowRank, WeightChange, WeightEditor, weight_name
from mechedit.models import weights
from mechedit.models.hooked import HookedModel
from reports.errors import InputError, first_line

__all__ = ["LoRA"]


@dataclass(frozen=True)
class LoRA(WeightEditor):
    """The editor; what is AUTO is chosen by the model (`ready`).

    Attributes:
        rank: Of the adapters.
        alpha: Of the adapters.
        steps: Adam's, at most.
        lr: Adam's.
        targets: The modules that get an adapter, by their name in the checkpoint or its last part; AUTO: those that
            make queries and values (`query_value_modules`).
        stop: The loss below which it stops, nats a token.
        seed: Of A's initial values (B is 0).

    >>> import mechedit as me
    >>> model, fact = me.load_model("factworld"), me.factworld.edits(1)[0]
    >>> with LoRA().apply(model, fact) as edited:
    ...     edited.generate([fact.rewrite_prompt], max_new_tokens=3)[0].startswith(f" {fact.target_new}")
    True
    """

    rank: int = 8
    alpha: int = 32
    steps: int = AUTO
    lr: float = AUTO
    targets: tuple[str, ...] = AUTO
    stop: float = 1e-2
    seed: int = 0
    name: str = "lora"

    DEFAULTS: ClassVar[Table] = {
        "gpt2-xl": {"steps": 70, "lr": 5e-3},
        "llama-2-7b": {"steps": 70, "lr": 5e-3},
        "smollm2-135m": {"steps": 70, "lr": 1e-3},
        "factworld": {"steps": 70, "lr": 5e-3},
        "factworld-llama": {"steps": 70, "lr": 5e-3},
    }

    def change(self, model: HookedModel, facts: FactEdit | Sequence[FactEdit]) -> WeightChange:
        """The edit as data; the model is left as it is."""
        ready, facts = self.ready(model), as_facts(facts)
        pairs = [model.continuation(fact.rewrite_prompt, fact.target_new, space=fact.space) for fact in facts]
        # The twin's class draws initial values, and so does peft: the caller's random state stays as it was.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(ready.seed)
            twin = shared_twin(model)
            adapted = ready._adapters(twin, ready.targets or query_value_modules(model))
        ready._train(model, adapted, pairs)
        parts, used = ready._products(twin), resolved(ready, model)
        return WeightChange(ready.name, facts, model.hash, parts, model.name, settings=used)

    def reads(self, model: HookedModel) -> dict[str, Any]:
        """The modules that get an adapter, where the model decides them."""
        return {"targets": list(self.ready(model).targets or query_value_modules(model))}

    def _adapters(self, twin: PreTrainedModel, targets: Sequence[str]) -> Any:
        with warnings.catch_warnings():
            # peft sets it itself for GPT-2's Conv1D, and says so.
            warnings.filterwarnings("ignore", message="fan_in_fan_out")
            warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`")
            config = LoraConfig(
                r=self.rank, lora_alpha=self.alpha, lora_dropout=0.0, target_modules=list(targets)
            )
            try:
                return get_peft_model(twin, config)
            except ValueError as error:
                raise InputError(
                    f"targets: expected linear modules of {type(twin).__name__}, found {', '.join(targets)}: "
                    f"{first_line(error)}"
                ) from error

    def _train(self, model: HookedModel, adapted: Any, pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
        ids, mask = model.pad([torch.cat([prompt, target[:-1]]) for prompt, target in pairs], side="right")
        row, column, tokens, shares = target_places(model, pairs)
        trained = [weight for weight in adapted.parameters() if weight.requires_grad]
        adam = torch.optim.Adam(trained, lr=self.lr)
        for _ in counted(range(self.steps), self.name):
            with torch.enable_grad():
                logits = adapted(input_ids=ids, attention_mask=mask, use_cache=False).logits[row, column]
                log_p = logits.float().log_softmax(-1).gather(-1, tokens[:, None])[:, 0]
                loss = -(shares * log_p).sum()
            if loss < self.stop:
                break
            adam.zero_grad()
            loss.backward()
            adam.step()

    def _products(self, twin: PreTrainedModel) -> dict[str, tuple[LowRank, ...]]:
        """The trained B A of each targeted weight, in the checkpoint's names and layout."""
        parts: dict[str, tuple[LowRank, ...]] = {}
        for name, module in twin.named_modules():
            if hasattr(module, "lora_A") and "default" in module.lora_A:
                scale = module.scaling["default"]
                a, b = module.lora_A["default"].weight.detach(), module.lora_B["default"].weight.detach()
                pair = (a.mT, scale * b.mT) if module.fan_in_fan_out else (scale * b, a)
                parts[f"{name}.weight"] = (LowRank(*(side.float().contiguous() for side in pair)),)
        return parts


def query_value_modules(model: HookedModel) -> list[str]:
    """Names in the checkpoint of the modules that make queries and values, of every layer: one where they are fused.

    Found by what they are in the bridged attention, whatever the architecture calls them.
    """
    names = []
    for block in model.bridge.blocks:
        parts = [block.attn.qkv] if hasattr(block.attn, "qkv") else [block.attn.q, block.attn.v]
        stored = [weight_name(model, part.original_component.weight)[0] for part in parts]
        names += [name.removesuffix(".weight") for name in stored]
    return names


def shared_twin(model: HookedModel) -> PreTrainedModel:
    """A plain Hugging Face model of the same class on the same memory, without a hook."""
    with torch.device("meta"):
        twin: PreTrainedModel = type(model.hf)(model.hf.config)
    for name, weight in weights.checkpoint_weights(model.hf):
        path, _, leaf = name.rpartition(".")
        setattr(twin.get_submodule(path), leaf, torch.nn.Parameter(weight.detach(), requires_grad=False))
    twin.tie_weights()
    # Buffers that are computed when a model is made, as LLaMA's frequencies: under their names without the bridge's.
    buffers = {name.replace("_original_component.", ""): buffer for name, buffer in model.hf.named_buffers()}
    for name, _ in list(twin.named_buffers()):
        path, _, leaf = name.rpartition(".")
        twin.get_submodule(path).register_buffer(leaf, buffers[name], persistent=False)
    devices = getattr(model.hf, "hf_device_map", {})
    if len({*devices.values()}) > 1:
        dispatch_model(twin, devices)  # moves what passes from one layer to the next, as in the model itself
    return twin.eval()
