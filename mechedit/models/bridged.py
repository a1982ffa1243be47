"""A bridged decoder: its text and ids, one forward pass, hooks that cannot fail silently, raw weights.

What it takes care of, because TransformerLens' bridge does not:

- text becomes ids as the checkpoint's tokenizer does it (`mechedit.models.prompts`); the bridge would add a BOS of its
  own;
- a batch is always padded with its mask and with positions that follow the mask;
- target tokens are read off prompt + target, because `tok(" Paris")` alone is another segmentation;
- hooks are checked (`mechedit.models.hooking`).

`mechedit.models.hooked` adds what builds on it: loading, generation, the residual view.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Self, cast

import torch
from transformer_lens.model_bridge import TransformerBridge
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from experiments.checkpoints import digest, tokenizer_digest
from experiments.progress import waiting
from experiments.provenance import provenance
from mechedit.models import weights
from mechedit.models.active import active_edits
from mechedit.models.architecture import require_parts
from mechedit.models.batching import batches
from mechedit.models.fused import share_fused
from mechedit.models.hooking import Hook, attach
from mechedit.models.masks import finite_masks
from mechedit.models.outlets import Outlet
from mechedit.models.reading import PromptReader, Prompts
from mechedit.models.refusals import longest
from mechedit.models.weights import FinalNorm
from reports.errors import InputError

__all__ = ["BridgedModel", "Prompts"]


class BridgedModel(PromptReader):
    """A decoder with hooks, its tokenizer and its raw weights; users hold a `HookedModel`.

    Attributes:
        name: What the model is called in results.
        source: Where it came from: an embedded model, a folder, an id with its revision, a bridge.
        bridge: TransformerLens' bridge, whose hook points are used.
        hf: The Hugging Face module that the bridge has put its hooks into.
        tokenizer: The checkpoint's own.
        shape: The decoder's sizes.
        framing: What every text is put into (`mechedit.models.reading`).
    """

    def __init__(
        self,
        bridge: TransformerBridge,
        tokenizer: PreTrainedTokenizerBase,
        *,
        name: str,
        source: str,
        prefix: str | None = None,
        chat: bool = False,
    ) -> None:
        self.name = name
        self.source = source
        self.bridge = bridge
        self.hf: PreTrainedModel = cast(PreTrainedModel, bridge.original_model)
        self.tokenizer = tokenizer
        self.hf.eval().requires_grad_(False)
        bridge.eval().requires_grad_(False)
        require_parts(bridge)
        share_fused(bridge)
        self.shape = weights.shape(bridge)
        self._read_by(prefix, chat)
        self._hash: tuple[tuple[int, ...], str] | None = None

    def __repr__(self) -> str:
        s = self.shape
        size = f"{s.n_layers} layers, {s.n_heads} heads, d_model {s.d_model}"
        edited = "".join(f", edited by {edit.text}" for edit in active_edits(self.hf))
        return f"{type(self).__name__}({self.name!r}, {s.architecture}, {size}, {self.dtype}, {self.where}{edited})"

    @property
    def called(self) -> str:
        """What `load_model` and `--model` take for it; "" where it was handed over in memory."""
        kind, _, rest = self.source.partition(":")
        if kind in ("embedded", "installed"):
            return rest
        if kind in ("bridge", "memory"):
            return ""
        return self.source if Path(self.source).is_absolute() else self.source.partition("@")[0]

    @property
    def device(self) -> torch.device:
        """Where the weights are; of a model on several devices, where the unembedding is, and all that hooks see."""
        return self.W_U.device

    @property
    def where(self) -> str:
        """The devices of all weights, as "cuda:0, cuda:1"."""
        return ", ".join(sorted({str(weight.device) for weight in self.hf.parameters()}))

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the weights and of all activations."""
        return self.W_U.dtype

    @property
    def n_ctx(self) -> int | None:
        """The longest sequence the checkpoint's config allows, or None where it says nothing."""
        return longest(self.hf.config)

    @property
    def quantization(self) -> str:
        """How the weights were stored before they were dequantised, as "4-bit (Q4_1)"; "" where they were not."""
        return str(getattr(self.hf.config, "dequantized_from", ""))

    @property
    def stored(self) -> dict[str, str]:
        """`quantization` as an entry of the model in a provenance; empty where the weights were not quantised."""
        return {"quantization": self.quantization} if self.quantization else {}

    @property
    def hash(self) -> str:
        """sha256 over the weights' names, dtypes, shapes and bytes, in the order of the names: the checkpoint's own.

        Computed on first use (a second per gigabyte), and again if a weight has been written to since.
        """
        named = dict(weights.checkpoint_weights(self.hf))
        written = tuple(weight._version for weight in named.values())
        if self._hash is None or self._hash[0] != written:
            with waiting(f"hash of the weights of {self.name}"):
                self._hash = (written, digest(named))
        return self._hash[1]

    @property
    def identity(self) -> dict[str, str]:
        """Name, source, hashes of model and tokenizer, and `framing`: the "model" of `provenance`."""
        return {
            "name": self.name,
            "source": self.source,
            "hash": self.hash,
            "tokenizer": tokenizer_digest(self.tokenizer),
            **self.stored,
            **self.framing,
        }

    def provenance(self, *, data: dict[str, Any], seeds: dict[str, Any]) -> dict[str, Any]:
        """What a number measured on this model depends on, for a run folder or a result.

        Args:
            data: Source and hash of the data.
            seeds: The seed of each generator.
        """
        return provenance(
            model=self.identity,
            data=data,
            seeds=seeds,
            device=self.where,
            dtype=str(self.dtype).removeprefix("torch."),
            attn_implementation=str(getattr(self.hf.config, "_attn_implementation", "unknown")),
        )

    # -------------------------------------------------------------------------------------- text and ids

    def pad(
        self, sequences: Sequence[torch.Tensor], *, side: Literal["left", "right"] = "left"
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(ids [B, T], mask [B, T]) of 1-d id tensors; the mask is 1 on real tokens and 0 on the filling.

        Raises:
            InputError: No sequence, an empty one, or another side than left and right.
        """
        if side not in ("left", "right"):
            raise InputError(f"side: expected left or right, found {side!r}")
        if not sequences or any(len(ids) == 0 for ids in sequences):
            raise InputError("sequences: expected at least one, each of at least one token")
        longest = max(len(ids) for ids in sequences)
        ids = torch.zeros(len(sequences), longest, dtype=torch.long, device=self.device)
        mask = torch.zeros_like(ids)
        for row, sequence in enumerate(sequences):
            where = slice(longest - len(sequence), None) if side == "left" else slice(len(sequence))
            ids[row, where] = sequence.to(self.device)
            mask[row, where] = 1
        return ids, mask

    # -------------------------------------------------------------------------------------- running it

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Logits [B, T, d_vocab] of ids [B, T] under mask [B, T]; positions count real tokens only.

        Gradients are recorded as the caller has set it. Logits at padding are meaningless. The mask is required:
        without it padded ids give wrong logits and no error.
        """
        return self.run(ids, mask)[0]

    def run(self, ids: torch.Tensor, mask: torch.Tensor, **options: Any) -> tuple[torch.Tensor, Any]:
        """(logits, KV cache or None): one forward pass of the bridge.

        With `past_key_values`, ids [B, n] are the new tokens and mask [B, past + n] covers the old ones too.

        Args:
            ids: Token ids [B, T].
            mask: 1 on real tokens [B, T].
            options: Go to the Hugging Face model; `use_cache` is False unless it is among them.

        Raises:
            InputError: The sequence is longer than the model's context.
        """
        length = mask.shape[1]
        if self.n_ctx is not None and length > self.n_ctx:
            raise InputError(f"prompt: expected at most {self.n_ctx} tokens, found {length}; shorten it")
        positions = (mask.long().cumsum(-1) - 1).clamp(min=0)[:, length - ids.shape[1] :]
        options = {"use_cache": False, **options}
        with finite_masks(self.bridge) if self.dtype == torch.float64 else contextlib.nullcontext():
            logits, cache = self.bridge(
                ids, attention_mask=mask, position_ids=positions, return_type="logits_and_cache", **options
            )
        return logits, cache

    @torch.no_grad()
    def logits(self, prompts: Prompts, *, batch_size: int = 32) -> torch.Tensor:
        """Next-token logits [B, d_vocab] behind each prompt (text or ids [T]), in order, without gradients.

        Prompts are padded on the left, so that a hook finds each one's last token at position −1. Those of like length
        run together (`mechedit.models.batching`): a hook does not see them in the order of the list.
        """
        if not len(prompts):
            raise InputError("prompts: expected some, found none")
        ids = self.encode(prompts)
        rows: dict[int, torch.Tensor] = {}
        for batch, logits in self.logits_by_batch(ids, batch_size=batch_size):
            rows |= dict(zip(batch, logits, strict=True))
        return torch.stack([rows[i] for i in range(len(ids))])

    def logits_by_batch(
        self, ids: Sequence[torch.Tensor], *, batch_size: int = 32
    ) -> Iterator[tuple[list[int], torch.Tensor]]:
        """`logits` as the passes are made: which of the prompts ran together, and theirs [n, d_vocab].

        Gradients are recorded as the caller has set it.
        """
        for batch in batches([len(sequence) for sequence in ids], batch_size):
            yield batch, self.run(*self.pad([ids[i] for i in batch]), logits_to_keep=1)[0][:, -1]

    @contextlib.contextmanager
    def hooks(self, hooks: Sequence[Hook]) -> Iterator[Self]:
        """Attach (hook name, fn) pairs for the block; `fn(tensor, hook)` returns a new tensor, or None to leave it.

        Names are TransformerLens' ("blocks.3.hook_attn_out", "blocks.3.attn.hook_z", ...). On leaving, by any way,
        exactly these hooks are removed. For gradients at an activation, make a leaf in the hook and return it.

        Raises:
            InputError: An unknown or switched-off name, one point under two names, or a value returned at
                hook_resid_mid (see `mechedit.models.hooking`).
            IntegrityError: On leaving, if the model ran and a hook never fired.
        """
        with attach(self.bridge, hooks):
            yield self

    # -------------------------------------------------------------------------------------- raw weights
    #
    # Matrices are views on their layer's device; norms and biases, which are small, are given on `device`.

    def W_O(self, layer: int) -> torch.Tensor:
        """[n_heads, d_head, d_model]; a view."""
        return weights.matrix(self._attn(layer).o).unflatten(0, (self.shape.n_heads, self.shape.d_head))

    def W_V(self, layer: int) -> torch.Tensor:
        """[n_heads, d_model, d_head]; a view, or a copy where KV heads are repeated to their query heads."""
        s = self.shape
        heads = weights.matrix(self._attn(layer).v).unflatten(1, (s.n_kv_heads, s.d_head)).permute(1, 0, 2)
        group = s.n_heads // s.n_kv_heads
        return heads if group == 1 else heads.repeat_interleave(group, dim=0)

    def W_in(self, layer: int) -> torch.Tensor:
        """[d_model, d_mlp]; a view. LLaMA: the up projection."""
        return weights.matrix(getattr(self._mlp(layer), "in"))

    def W_gate(self, layer: int) -> torch.Tensor | None:
        """[d_model, d_mlp]; a view. None where the MLP is not gated."""
        return weights.matrix(self._mlp(layer).gate) if self.shape.gated else None

    def W_out(self, layer: int) -> torch.Tensor:
        """[d_mlp, d_model]; a view."""
        return weights.matrix(self._mlp(layer).out)

    def b_O(self, layer: int) -> torch.Tensor | None:
        """[d_model], or None."""
        return self._bias(self._attn(layer).o)

    def b_out(self, layer: int) -> torch.Tensor | None:
        """[d_model], or None."""
        return self._bias(self._mlp(layer).out)

    def norm1(self, layer: int) -> FinalNorm:
        """The norm that attention reads the stream through; of kind "none" where there is none (OLMo-2)."""
        return self._norm(self._block(layer), "ln1") or weights.no_norm(self.W_U[:, 0])

    def norm2(self, layer: int) -> FinalNorm:
        """The norm that the MLP reads through; a parallel block may have one for both (GPT-J)."""
        own = self._norm(self._block(layer), "ln2")
        shared = self.norm1(layer) if self.shape.parallel else weights.no_norm(self.W_U[:, 0])
        return own or shared

    def attn_outlet(self, layer: int) -> Outlet:
        """What attention's output passes on its way into the stream (`mechedit.models.outlets`)."""
        return self._outlet(layer, "ln1_post")

    def mlp_outlet(self, layer: int) -> Outlet:
        """What the MLP's output passes on its way into the stream."""
        return self._outlet(layer, "ln2_post")

    def b_V(self, layer: int) -> torch.Tensor | None:
        """[n_kv_heads, d_head], or None."""
        bias = self._bias(self._attn(layer).v)
        return None if bias is None else bias.unflatten(0, (self.shape.n_kv_heads, self.shape.d_head))

    def b_in(self, layer: int) -> torch.Tensor | None:
        """[d_mlp], or None."""
        return self._bias(getattr(self._mlp(layer), "in"))

    def b_gate(self, layer: int) -> torch.Tensor | None:
        """[d_mlp], or None."""
        return self._bias(self._mlp(layer).gate) if self.shape.gated else None

    @property
    def act_fn(self) -> torch.nn.Module:
        """The MLP's activation function, as its module has it."""
        return weights.activation(self._mlp(0))

    @property
    def W_U(self) -> torch.Tensor:
        """[d_model, d_vocab]; a view."""
        return weights.matrix(self.bridge.unembed)

    @property
    def b_U(self) -> torch.Tensor | None:
        """[d_vocab], or None; times the factor of the logits, if the model has one."""
        bias, scale = weights.bias(self.bridge.unembed), self.shape.logit_scale
        return bias if bias is None or scale == 1 else bias * scale

    @property
    def final_norm(self) -> FinalNorm:
        """The norm before the unembedding; a factor of the logits (Granite, Cohere) is in its weight and bias.

        So the logits are final_norm(x) @ W_U + b_U of every model.
        """
        norm, scale = self._norm(self.bridge, "ln_final"), self.shape.logit_scale
        assert norm is not None  # `require_parts`
        if scale == 1:
            return norm
        bias = None if norm.bias is None else norm.bias * scale
        return replace(norm, weight=norm.weight * scale, bias=bias)

    # -------------------------------------------------------------------------------------- inside

    def _block(self, layer: int) -> Any:
        if not 0 <= layer < self.shape.n_layers:
            raise InputError(f"layer: expected 0 to {self.shape.n_layers - 1}, found {layer}")
        return self.bridge.blocks[layer]

    def _norm(self, parent: Any, name: str) -> FinalNorm | None:
        """The norm of this name, or None."""
        if not hasattr(parent, name):
            return None
        return weights.norm(getattr(parent, name), like=self.W_U[:, 0]).to(self.device)

    def _bias(self, component: Any) -> torch.Tensor | None:
        """The bias of a projection, or None."""
        bias = weights.bias(component)
        return None if bias is None else bias.to(self.device)

    def _outlet(self, layer: int, norm: str) -> Outlet:
        block = self._block(layer)
        return Outlet(self._norm(block, norm), float(getattr(block, "residual_contribution_scale", 1.0)))

    def _attn(self, layer: int) -> Any:
        return self._block(layer).attn

    def _mlp(self, layer: int) -> Any:
        return self._block(layer).mlp
