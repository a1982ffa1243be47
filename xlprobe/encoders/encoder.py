"""Any encoder of a known architecture: plain Hugging Face modules, states read by forward hooks.

`load_encoder` finds a checkpoint (embedded, a folder, an id of the hub), refuses what cannot be used, loads it once
and checks it by a small forward pass. The encoder proper (`Encoder.model`: embeddings and blocks, no head) is what
alignment and tasks share; the head of masked language modelling stands apart (`Encoder.lm_head`), because its
gradients are never compared.

Attention is Hugging Face's `sdpa` unless another implementation is chosen. Weights are safetensors only, and code
that a checkpoint brings along is never run.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
from torch import Tensor, nn
from transformers import AutoModelForMaskedLM, PreTrainedModel, PreTrainedTokenizerBase

from experiments import checkpoints, runs
from experiments.progress import waiting
from experiments.weight_files import weight_elements, weight_files
from reports.errors import InputError, IntegrityError
from reports.files import occupied
from xlprobe.encoders.architectures import layer_modules, longest, padding_row, put_head
from xlprobe.encoders.batches import Batch, Sentence, Tokenized
from xlprobe.encoders.loading import EMBEDDED, read_model, read_tokenizer, require_architecture
from xlprobe.encoders.parameters import parameter_table

__all__ = ["Encoder", "load_encoder"]

logger = logging.getLogger(__name__)

Attention = Literal["sdpa", "eager", "flash_attention_2"]
PROBE = ("One small sentence .", "A second one , which is a little longer than the first .")
QUIET_BELOW = 2**30  # bytes; reading fewer takes about a second and needs no progress bar
MAX_LENGTH = 512


def load_encoder(
    name: str | os.PathLike[str],
    *,
    device: str = "auto",
    dtype: str | torch.dtype = "float32",
    attention: Attention = "sdpa",
) -> Encoder:
    """Load the embedded encoder ("langworld"), a local folder or a Hugging Face id ("xlm-roberta-base").

    A small forward pass checks the result: hooks give what `output_hidden_states` gives, bit for bit, every layer is
    there, and every parameter has its role (`Encoder.parameter_table`). A local folder causes no network traffic.

    Args:
        name: "langworld", a folder or an id.
        device: "auto" (CUDA where there is one), "cpu" or "cuda".
        dtype: "float32", "float64", "bfloat16" or "float16".
        attention: The implementation of transformers that computes it; DeBERTa has "eager" alone, and takes it for
            "sdpa".

    Raises:
        InputError: No such folder and no id that can be fetched; no tokenizer files, or a slow tokenizer; an
            architecture that is not in `xlprobe.encoders.architectures`, or a decoder; weights missing; not enough
            memory (with both sizes).
        IntegrityError: The hooks do not see what the model computes.

    >>> load_encoder("./no/such/folder")
    Traceback (most recent call last):
        ...
    reports.errors.InputError: encoder: expected langworld, ..., found './no/such/folder': no such folder
    """
    target, precision = checkpoints.pick_device(device), checkpoints.pick_dtype(dtype)
    folder, source = checkpoints.find_folder(os.fspath(name), embedded=EMBEDDED, argument="encoder")
    require_architecture(folder)
    files = weight_files(folder, argument="encoder")
    n_bytes = weight_elements(files, argument="encoder") * precision.itemsize
    checkpoints.require_memory(n_bytes, device=target, dtype=precision, folder=folder, argument="encoder")
    tokenizer = read_tokenizer(folder)
    with waiting(f"loading {name}"), checkpoints.progress_bar(shown=n_bytes >= QUIET_BELOW):
        model, head = read_model(folder, dtype=precision, attention=attention)
    shown = str(name) if source.startswith("embedded:") or "@" in source else Path(name).name
    nn.Module.to(model, target)
    encoder = Encoder(model, tokenizer, name=shown, source=source, lm_head=head)
    encoder.self_check()
    if remark := padding_row(model, tokenizer):
        logger.warning("%s: %s", shown, remark)
    logger.info("loaded %s (%s, %s, %s)", source, type(model).__name__, precision, target)
    return encoder


class Encoder:
    """A masked-language-model encoder, its tokenizer, and its states by hooks. Get one from `load_encoder`.

    The model is in evaluation mode (dropout off), and its parameters require gradients.

    Attributes:
        model: The Hugging Face base model: embeddings and blocks.
        name: Name of the checkpoint.
        source: Where it came from.
        lm_head: The head of masked language modelling, or None where the checkpoint has none.
        embeddings: The module whose output is layer 0.
        blocks: The modules whose outputs are the layers above it: the blocks, the last of them replaced by the norm
            behind it where the architecture has one.

    >>> encoder = load_encoder("langworld", device="cpu")
    >>> batch = encoder.encode(["one text", "another , longer one"])
    >>> states = encoder.states(batch)
    >>> states.shape == (encoder.n_layers + 1, *batch.input_ids.shape, encoder.d_model)
    True
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        name: str,
        source: str,
        lm_head: nn.Module | None = None,
    ) -> None:
        self.model = model
        self._tokenized = Tokenized(tokenizer)
        self.name = name
        self.source = source
        self.lm_head = lm_head.to(next(model.parameters()).device) if lm_head is not None else None
        parts: Any = model  # transformers types its submodules as Tensor | Module
        self.embeddings: nn.Module = parts.embeddings
        self.blocks: Sequence[nn.Module] = layer_modules(model)
        for module in (model, lm_head):
            if module is not None:
                module.eval().requires_grad_(True)
        self._hash: tuple[tuple[int, ...], str] | None = None

    def __repr__(self) -> str:
        size = f"{self.n_layers} layers, d_model {self.d_model}"
        return f"{type(self).__name__}({self.name!r}, {type(self.model).__name__}, {size}, {self.dtype}, {self.device})"

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The checkpoint's own tokenizer."""
        return self._tokenized.tokenizer

    @property
    def n_layers(self) -> int:
        """The number of blocks; the states have one layer more, the embeddings."""
        return len(self.blocks)

    @property
    def d_model(self) -> int:
        """Width of a hidden state."""
        return int(self.model.config.hidden_size)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights and of all states."""
        return next(self.model.parameters()).dtype

    @property
    def max_length(self) -> int:
        """The longest sequence in tokens, special tokens included; at most 512."""
        return min(MAX_LENGTH, longest(self.model))

    @property
    def hash(self) -> str:
        """sha256 over names, dtypes, shapes and bytes of the encoder's weights, computed anew after a write to one."""
        named = dict(self.model.named_parameters())
        written = tuple(weight._version for weight in named.values())
        if self._hash is None or self._hash[0] != written:
            self._hash = (written, checkpoints.digest(named))
        return self._hash[1]

    def provenance(self, *, data: dict[str, Any], seeds: dict[str, Any]) -> dict[str, Any]:
        """What a number measured on this encoder depends on, for a run folder or a result (`experiments.runs`)."""
        return runs.provenance(
            model={
                "name": self.name,
                "source": self.source,
                "hash": self.hash,
                "tokenizer": checkpoints.tokenizer_digest(self.tokenizer),
            },
            data=data,
            seeds=seeds,
            device=str(self.device),
            dtype=str(self.dtype).removeprefix("torch."),
            attn_implementation=str(getattr(self.model.config, "_attn_implementation", "unknown")),
        )

    # -------------------------------------------------------------------------------------- text and states

    def encode(self, sentences: Sequence[Sentence], *, max_length: int | None = None) -> Batch:
        """The batch of texts, or of word lists; longer sentences are cut off at `max_length` tokens (`Tokenized`)."""
        return self._tokenized.encode(sentences, max_length=min(max_length or MAX_LENGTH, self.max_length))

    def lost(self, sentences: Sequence[Sentence], *, max_length: int | None = None) -> list[int]:
        """How many tokens of each sentence `encode` cuts off."""
        return self._tokenized.lost(sentences, max_length=min(max_length or MAX_LENGTH, self.max_length))

    def forward(self, batch: Batch) -> Tensor:
        """The last layer's states [B, T, d], which a task head takes."""
        batch = batch.to(self.device)
        output = self.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
        last: Tensor = output.last_hidden_state
        return last

    def states(self, batch: Batch) -> Tensor:
        """The states of all layers [n_layers + 1, B, T, d]: 0 the embeddings, i the output of block i - 1, by hooks.

        They equal `output_hidden_states` bit for bit, and gradients flow. Values at padded positions mean nothing.

        Raises:
            IntegrityError: A layer's hook did not fire.
        """
        seen: list[Tensor] = []
        with self._watch(seen.append):
            self.forward(batch)
        if len(seen) != self.n_layers + 1:
            raise IntegrityError(f"states: expected {self.n_layers + 1} layers, {len(seen)} hooks fired")
        return torch.stack(seen)

    def state(self, batch: Batch, layer: int) -> Tensor:
        """One layer, `states(batch)[layer]` [B, T, d], without running the blocks above it."""
        seen: list[Tensor] = []

        def see(output: Tensor) -> None:
            seen.append(output)
            if len(seen) > layer:
                raise _Reached

        with self._watch(see), contextlib.suppress(_Reached):
            self.forward(batch)
        if len(seen) != layer + 1:
            raise IntegrityError(f"state: expected layers 0 to {layer}, {len(seen)} hooks fired")
        return seen[layer]

    @contextlib.contextmanager
    def _watch(self, see: Callable[[Tensor], Any]) -> Iterator[None]:
        """Call `see` on the output of the embeddings and of each block, in order, inside the context."""

        def hook(module: nn.Module, inputs: object, output: Tensor | tuple[Tensor, ...]) -> None:
            see(output[0] if isinstance(output, tuple) else output)

        handles = [m.register_forward_hook(hook) for m in (self.embeddings, *self.blocks)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    # -------------------------------------------------------------------------------------- weights

    def parameter_table(self) -> pd.DataFrame:
        """Frame name, layer, group, numel: every parameter of `model` once (see `xlprobe.encoders.parameters`)."""
        return parameter_table(self.model)

    def copy(self) -> Encoder:
        """The same encoder with weights of its own, so that training it leaves this one unchanged."""
        # One deep copy of both, so that the head's decoder stays tied to the embeddings.
        model, head = copy.deepcopy((self.model, self.lm_head))
        twin = Encoder(model, self.tokenizer, name=self.name, source=self.source, lm_head=head)
        twin._tokenized = self._tokenized
        return twin

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write a checkpoint in Hugging Face's layout that `load_encoder` reads; the folder.

        Raises:
            InputError: The folder holds files.
        """
        path = Path(folder)
        if occupied(path):
            raise InputError(
                f"folder: expected a new or an empty folder, found files in {path}; choose another"
            )
        whole: PreTrainedModel = self.model
        if self.lm_head is not None:
            whole = AutoModelForMaskedLM.from_config(self.model.config, dtype=self.dtype)
            setattr(whole, whole.base_model_prefix, self.model)
            put_head(whole, self.lm_head)
        with checkpoints.progress_bar(shown=False):
            whole.save_pretrained(path)
        self.tokenizer.save_pretrained(path)
        return path

    def self_check(self) -> None:
        """Check that this is the encoder that the package takes it for.

        Raises:
            InputError: The tokenizer is another model's.
            IntegrityError: Layers are missing, or the hooks do not see what the model computes.
        """
        table = self.parameter_table()
        if sorted(set(table["layer"])) != list(range(self.n_layers + 1)):
            raise IntegrityError(
                f"{self.name}: layers {sorted(set(table['layer']))} of {self.n_layers} blocks"
            )
        batch = self.encode(PROBE)
        if int(batch.input_ids.max()) >= int(self.model.config.vocab_size):
            raise InputError(
                f"encoder: the tokenizer of {self.source} gives ids beyond its embeddings; it is another model's"
            )
        with torch.no_grad():
            batch = batch.to(self.device)
            hidden = self.model(
                input_ids=batch.input_ids, attention_mask=batch.attention_mask, output_hidden_states=True
            ).hidden_states
            states = torch.stack(list(hidden))
            if len(hidden) != self.n_layers + 1 or not torch.equal(self.states(batch), states):
                raise IntegrityError(f"{self.name}: the hooks do not see what the model computes")


class _Reached(Exception):
    """The wanted layer is known: no block above it need run."""
