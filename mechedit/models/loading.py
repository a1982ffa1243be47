"""From a name to a checkpoint in memory: find it, check it, load it once, wrap it.

A checkpoint is a folder in Hugging Face's layout (config.json, safetensors, tokenizer files), or one GGUF file that
holds all of it (`mechedit.models.gguf_file`). Steps:

1. find it: an embedded or installed name, a local folder or GGUF file, else a model id of the Hugging Face hub;
2. refuse what can be refused before a weight is read: no tokenizer files, no safetensors, an architecture that
   TransformerLens does not know, weights larger than the free memory (read off the headers);
3. load the plain Hugging Face model, once, and take its logits on a few tokens as the reference;
4. hand it over to TransformerLens' `TransformerBridge`, which puts hooks into this same module tree: there is no
   second copy of the weights, and GPT-2's q, k and v are views of its fused projection.

Attention is loaded with Hugging Face's `eager` implementation, because the fused ones (sdpa, flash) never hold
the attention pattern, which attribution needs; it is also the order of operations that the bridge follows.

Two decisions about safety: weights are read from safetensors and GGUF only (other formats are pickles and run code
when read), and code that a checkpoint brings along is never run (`trust_remote_code=False` throughout).
"""

from __future__ import annotations

import copy
import logging
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from experiments import checkpoints
from experiments.gguf_header import read_header
from experiments.weight_files import weight_elements, weight_files
from mechedit.models import gguf_file, refusals
from mechedit.models.adapters import objection
from mechedit.models.embedded import EMBEDDED, FOLDERS, INSTALLED
from mechedit.models.masks import narrow_windows
from reports.errors import InputError

__all__ = ["Checkpoint", "DeviceMap", "load_checkpoint", "read_model", "take_over"]

logger = logging.getLogger(__name__)

#: "auto", or the device of each part by its module's name, as transformers' `device_map`.
DeviceMap = str | Mapping[str, str | int]

ATTENTION = "eager"
QUIET_BELOW = 2**30  # bytes; reading fewer takes about a second and needs no progress bar


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A loaded and bridged model, and what the plain model computed before it was bridged.

    Attributes:
        source: The embedded model, folder, or id with its revision.
        bridge: TransformerLens' bridge around the Hugging Face model.
        tokenizer: The checkpoint's own.
        probe: Token ids [T].
        reference: The plain Hugging Face model's logits on them [T, d_vocab].
    """

    source: str
    bridge: TransformerBridge
    tokenizer: PreTrainedTokenizerBase
    probe: torch.Tensor
    reference: torch.Tensor


def load_checkpoint(
    name: str,
    *,
    device: str = "auto",
    dtype: str | torch.dtype = "float32",
    device_map: DeviceMap | None = None,
) -> Checkpoint:
    """Find, check, load and bridge the model called `name`.

    Args:
        name: An embedded model, a folder or an id.
        device: "auto", "cpu", "cuda", "cuda:1".
        dtype: A torch dtype or its name.
        device_map: Which device each part goes to, instead of `device`.

    Raises:
        InputError: The model cannot be found, read or bridged, or the memory does not suffice.
    """
    target, precision = checkpoints.pick_device(device), checkpoints.pick_dtype(dtype)
    folder, source = _find_folder(name)
    if device_map is not None:
        if device != "auto":
            raise InputError(
                f"device, device_map: expected one of the two, found {device!r} and {device_map!r}"
            )
        if folder.is_file():
            raise InputError(
                f"device_map: expected a folder, found {folder.name}: a GGUF file goes to one device"
            )
        hf, tokenizer = _read_spread(folder, precision, device_map)
        return _bridged(hf, tokenizer, source, where=str(folder))
    if folder.is_file():
        hf, tokenizer = _read_gguf(folder, target, precision)
    else:
        hf, tokenizer = _read_folder(folder, target, precision)
    torch.nn.Module.to(hf, target)
    return _bridged(hf, tokenizer, source, where=str(folder))


def take_over(hf: object, tokenizer: PreTrainedTokenizerBase | None) -> Checkpoint:
    """Check and bridge a plain Hugging Face model in memory: no weight is copied, device and dtype stay as they are.

    Args:
        hf: The model; the bridge puts its hooks into this very module tree.
        tokenizer: The model's own.

    Raises:
        InputError: It is no language model of transformers', an adapter is not merged, it is bridged already, its
            weights have several dtypes, or lie on several devices but not by a `device_map` of transformers' (or in
            part on the CPU or the disk); and as `load_checkpoint`.
    """
    if tokenizer is None:
        raise InputError(f"tokenizer: expected that of {type(hf).__name__}, found None")
    if not isinstance(hf, PreTrainedModel) or any(hasattr(part, "lora_A") for part in hf.modules()):
        hint = (
            "; merge its adapter first: model.merge_and_unload()" if isinstance(hf, torch.nn.Module) else ""
        )
        raise InputError(
            f"model: expected a name, a folder or a PreTrainedModel of transformers', found {type(hf).__name__}{hint}"
        )
    if any("_original_component" in part._modules for part in hf.modules()):
        raise InputError("model: it is bridged already; use the HookedModel, or load it again")
    places = {(weight.device, weight.dtype) for weight in hf.parameters()}
    spread = hasattr(hf, "hf_device_map") and all(device.type not in ("cpu", "meta") for device, _ in places)
    if len({dtype for _, dtype in places}) != 1 or (
        not spread and (len(places) != 1 or next(iter(places))[0].type == "meta")
    ):
        shown = ", ".join(sorted(f"{dtype} on {device}".removeprefix("torch.") for device, dtype in places))
        raise InputError(f"model: expected weights of one dtype on one device, found {shown}")
    checkpoints.pick_dtype(next(iter(places))[1])
    last, rows = max(tokenizer.get_vocab().values()), next(hf.get_input_embeddings().parameters()).shape[0]
    if last >= rows:
        raise InputError(
            f"tokenizer: expected ids below the model's {rows}, found one of {last}; it is another model's"
        )
    config = hf.config
    config.architectures = [type(hf).__name__]
    where = str(getattr(config, "_name_or_path", "") or type(hf).__name__)
    _require_supported(config, where)
    hf.set_attn_implementation(ATTENTION)
    return _bridged(hf, tokenizer, f"memory:{where}", where=where)


def _bridged(
    hf: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, source: str, *, where: str
) -> Checkpoint:
    """The plain model, run once for reference and then bridged."""
    hf.eval().requires_grad_(False)
    hf.config.architectures = [type(hf).__name__]  # a config may name none
    with refusals.refused(f"{type(hf).__name__} in {where} cannot be run"):
        probe, reference = _probe_logits(hf)
    first = next(hf.parameters())
    if not bool(reference.isfinite().all()):
        raise InputError(
            f"model: {type(hf).__name__} in {where} computes logits that are not finite in "
            f"{str(first.dtype).removeprefix('torch.')}: its weights are damaged, or it overflows in this dtype"
        )
    # The bridge changes its tokenizer (BOS, padding token): it gets a copy, and ours stays as the checkpoint has it.
    with refusals.refused(f"{type(hf).__name__} in {where} cannot be bridged by TransformerLens"):
        bridge = TransformerBridge.boot_transformers(
            where, hf_model=hf, tokenizer=copy.deepcopy(tokenizer), device=first.device, dtype=first.dtype
        )
    logger.info("loaded %s (%s, %s, %s)", source, type(hf).__name__, first.dtype, first.device)
    return Checkpoint(source, bridge, tokenizer, probe, reference)


def _read_folder(
    folder: Path, device: torch.device, dtype: torch.dtype
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The plain model and its tokenizer, after what can be checked before a weight is read."""
    _require_architecture(folder)
    n_bytes = weight_elements(weight_files(folder)) * dtype.itemsize
    checkpoints.require_memory(n_bytes, device=device, dtype=dtype, folder=folder)
    tokenizer = checkpoints.read_tokenizer(folder)
    with checkpoints.progress_bar(shown=n_bytes >= QUIET_BELOW):
        return read_model(folder, dtype=dtype), tokenizer


def _read_spread(
    folder: Path, dtype: torch.dtype, device_map: DeviceMap
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The same over several devices, by accelerate, which moves what passes from one layer to the next."""
    _require_architecture(folder)
    devices = [torch.device("cuda", i) for i in range(torch.cuda.device_count())] or [torch.device("cpu")]
    n_bytes = weight_elements(weight_files(folder)) * dtype.itemsize
    if device_map == "auto":
        checkpoints.require_memory(n_bytes, device=devices, dtype=dtype, folder=folder)
    tokenizer = checkpoints.read_tokenizer(folder)
    with checkpoints.progress_bar(shown=n_bytes >= QUIET_BELOW):
        hf = read_model(folder, dtype=dtype, device_map=device_map)
    kinds = {weight.device.type for weight in hf.parameters()}
    if "meta" in kinds or len(kinds) > 1:
        raise InputError(
            f"device_map: {folder} does not fit the devices: accelerate left parts of it to the CPU or the disk, where "
            "attribution and edits could not read them; use dtype='bfloat16' or more devices"
        )
    return hf, tokenizer


def _read_gguf(
    file: Path, device: torch.device, dtype: torch.dtype
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The same of a GGUF file; sizes and architecture are read off its header."""
    header = read_header(file)
    n_bytes = header.n_elements * dtype.itemsize
    shown = n_bytes >= QUIET_BELOW // 4 and sys.stderr.isatty()
    checkpoints.require_memory(n_bytes, device=device, dtype=dtype, folder=file)
    checkpoints.require_memory(
        gguf_file.load_bytes(header, dtype), device=torch.device("cpu"), dtype=dtype, folder=file
    )
    with gguf_file.parsed_once():
        config = gguf_file.read_config(header)
        _require_supported(config, file)
        tokenizer = gguf_file.read_tokenizer(header)
        logger.info("dequantising %s: %s", file.name, header.quantization or "float weights")
        return gguf_file.read_model(header, config, dtype=dtype, attention=ATTENTION, shown=shown), tokenizer


# ------------------------------------------------------------------------------------------ finding it


def _find_folder(name: str) -> tuple[Path, str]:
    """The checkpoint's folder or file and its source: `experiments.checkpoints.find_folder` with the named models."""
    if name in INSTALLED:
        return INSTALLED[name].path(name), f"installed:{name}"
    try:
        return checkpoints.find_folder(name, embedded=FOLDERS, gguf=True)
    except InputError as error:
        if name not in EMBEDDED:
            raise
        raise InputError(
            f"{error}; train it with: mechedit factworld train --arch {EMBEDDED[name]}"
        ) from error


def _require_architecture(folder: Path) -> None:
    """Refuse a folder without a config, a property that is in the way, and what the bridge does not know."""
    _require_supported(refusals.read_config(folder), folder)


def _require_supported(config: PretrainedConfig, where: Path | str) -> None:
    """Refuse a property that is in the way, and what the bridge does not know."""
    architecture = refusals.architecture_of(config)
    with refusals.refused(f"{architecture} in {where} cannot be bridged by TransformerLens"):
        why = refusals.refusal(config) or objection(config, architecture)
    if why is not None:
        raise InputError(f"model: {architecture} in {where} is not supported: {why}")


def read_model(folder: Path, *, dtype: torch.dtype, device_map: DeviceMap | None = None) -> PreTrainedModel:
    """The plain Hugging Face model of a folder or a GGUF file.

    A weight that is missing or of another shape is refused; transformers would draw it at random and only log it.

    Raises:
        InputError: The folder cannot be read, or weights are missing.
    """
    if folder.is_file():
        header = read_header(folder)
        with gguf_file.parsed_once():
            config = gguf_file.read_config(header)
            return gguf_file.read_model(header, config, dtype=dtype, attention=ATTENTION, shown=False)
    load: Callable[..., Any] = AutoModelForCausalLM.from_pretrained
    with refusals.refused(f"{folder} cannot be loaded"):
        model, report = load(
            folder,
            dtype=dtype,
            attn_implementation=ATTENTION,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            **({} if device_map is None else {"device_map": device_map}),
        )
    faults = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))
    if faults:
        raise InputError(
            f"model: weights missing from {folder}: {len(faults)} that its config.json asks for, "
            f"the first {faults[0]}; the folder is incomplete or mixes two models"
        )
    if report["unexpected_keys"]:
        logger.warning(
            "%s: %d weights not part of the model were left out", folder, len(report["unexpected_keys"])
        )
    return cast(PreTrainedModel, model)


# ------------------------------------------------------------------------------------------ helpers


@torch.no_grad()
def _probe_logits(hf: PreTrainedModel) -> tuple[torch.Tensor, torch.Tensor]:
    """Six token ids spread over the vocabulary [6], and the logits of the plain model on them [6, d_vocab]."""
    embeddings = next(hf.get_input_embeddings().parameters())
    probe = torch.linspace(0, embeddings.shape[0] - 1, 6).long().to(embeddings.device)
    with narrow_windows(hf.config):
        return probe, hf(probe[None], use_cache=False).logits[0]
