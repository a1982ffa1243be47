"""C = E[k kᵀ]: the uncentred covariance of a layer's keys (what W_out multiplies) over a text.

Source: ROME (Meng et al., NeurIPS 2022, section 3.1, step 3); MEMIT weighs the same C by λ. Steps:

1. the text is streamed (`mechedit.editors.weights.corpus`), cut into windows of the model's context, and run in
   batches; nothing above the highest of the layers is needed and no gradient is kept;
2. Σ k kᵀ and the number of tokens are summed in fp64, batch after batch in the text's order, for all layers in one
   pass. Sums of parts of a text add up to those of the whole.
3. The sums are written to the cache now and then with how far the text was read, so a stopped run goes on, to the very
   bits of one that was not stopped.

The cache's key holds all that the numbers depend on: weights, tokenizer, text, layer, dtype, sample size, window and
schema. The folder is `$MECHEDIT_CACHE`, else `~/.cache/mechedit`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from experiments.checkpoints import tokenizer_digest
from experiments.progress import LONG, bar, counted
from mechedit.editors.weights.corpus import OWN, Corpus, embedded_corpus, own_corpus, windows
from mechedit.editors.weights.weight_edit import origin, unedited
from mechedit.models.cache import cache_folder
from mechedit.models.embedded import EMBEDDED
from mechedit.models.hooked import HookedModel
from mechedit.models.hooking import post
from reports.errors import InputError
from reports.files import whole_file

__all__ = ["Covariance", "covariance_for", "covariances"]

log = logging.getLogger(__name__)

SCHEMA_VERSION = 1
WINDOW = 512  # tokens of one text that are run together
BATCH = 32  # windows of one forward pass
SAVE_EVERY = 60.0  # seconds between two writes of an unfinished sum
RIDGE = 1e-8  # of the mean eigenvalue: what is added first where C has no inverse
POWERS = 20  # steps of the power iteration that estimates a condition number


@dataclass(frozen=True, eq=False)
class Covariance:
    """C of one layer.

    Attributes:
        moment: The sum of k kᵀ over the tokens [d_mlp, d_mlp], fp64.
        n_tokens: Their number.
        source: The text, as a reader knows it.
        made_of: What else the sum depends on, besides model and layer: hashes of text and tokenizer, window, batch;
            empty where it was not computed here.
        measured: Its condition number, where that has been computed before.

    >>> c = Covariance(torch.diag(torch.tensor([8.0, 2.0]).double()), n_tokens=2, layer=0, source="by hand")
    >>> c.matrix.diagonal().tolist(), c.condition
    ([4.0, 1.0], 4.0)
    >>> c.solve(torch.tensor([[4.0], [3.0]])).tolist()
    [[1.0], [3.0]]
    """

    moment: Tensor
    n_tokens: int
    layer: int
    source: str
    made_of: Mapping[str, Any] = field(default_factory=dict)
    measured: float | None = None

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What tells it from another C, and (under "about") what a reader wants to know of it, as plain data."""
        made_of = self.made_of or {"sha256": hashlib.sha256(self.moment.cpu().numpy().tobytes()).hexdigest()}
        condition = float(f"{self.condition:.3g}")
        about = {
            "source": self.source,
            "condition": condition if math.isfinite(condition) else str(condition),
        }
        return {"layer": self.layer, **made_of, "tokens": self.n_tokens, "about": about}

    @property
    def matrix(self) -> Tensor:
        """C [d_mlp, d_mlp], fp64: the mean over tokens."""
        return self.moment / self.n_tokens

    @cached_property
    def eigenvalues(self) -> Tensor:
        """The eigenvalues of C, rising."""
        return torch.linalg.eigvalsh(self.matrix)

    @property
    def condition(self) -> float:
        """Largest over smallest eigenvalue; infinite where fewer tokens than neurons were seen."""
        if self.measured is not None:
            return self.measured
        if not bool(self.moment.isfinite().all()):
            return float("nan")
        smallest, largest = float(self.eigenvalues[0]), float(self.eigenvalues[-1])
        floor = largest * len(self.moment) * torch.finfo(torch.float64).eps
        return largest / smallest if smallest > floor else float("inf")

    @cached_property
    def ridge(self) -> float:
        """What is added to the diagonal so that C has an inverse in fp64: 0, or the smallest ridge, which is logged.

        Raises:
            InputError: C is not finite, or ill-conditioned whatever is added.
        """
        ridge = regularising(self.matrix, f"layer {self.layer}")
        if ridge:
            log.warning("layer %d: C of %d tokens has no inverse; ridge %.0e of its mean eigenvalue added; "
                        "better: C of more tokens (mechedit covariance)", self.layer, self.n_tokens,
                        ridge / float(self.matrix.diagonal().mean()))  # fmt: skip
        return ridge

    @property
    def regular(self) -> Tensor:
        """C with its ridge [d_mlp, d_mlp], fp64: a matrix that has an inverse."""
        matrix = self.matrix.clone()
        matrix.diagonal().add_(self.ridge)
        return matrix

    @cached_property
    def factor(self) -> Tensor:
        """Cholesky factor of `regular`."""
        return torch.linalg.cholesky(self.regular)

    def solve(self, keys: Tensor) -> Tensor:
        """C⁻¹ keys, for keys [d_mlp, n], in fp64."""
        return torch.cholesky_solve(keys.to(self.factor), self.factor)


def regularising(matrix: Tensor, name: str) -> float:
    """The least ridge (0, or `RIDGE` of the mean eigenvalue, times 10, 100, …) that gives the matrix an inverse.

    Args:
        matrix: Symmetric, no eigenvalue below 0 [n, n], fp64.
        name: What the error calls it.

    Raises:
        InputError: The matrix is not finite, or its condition number is too large whatever is added.

    >>> regularising(torch.eye(2).double(), "C"), regularising(torch.ones(2, 2).double(), "C")
    (0.0, 1e-08)
    """
    mean = float(matrix.diagonal().mean())
    for share in (0.0, *(RIDGE * 10**i for i in range(9))):
        shifted = matrix.clone()
        shifted.diagonal().add_(share * mean)
        if factored(shifted) is not None:
            return share * mean
    reason = (
        "is zero or ill-conditioned, whatever ridge is added: take the keys of more tokens"
        if matrix.isfinite().all()
        else "is not finite; the model's activations overflow"
    )
    raise InputError(f"covariance: C of {name} {reason}")


def factored(matrix: Tensor) -> Tensor | None:
    """The Cholesky factor; None where the condition number leaves fp64 no digit: it is 1 / (n · eps) or more.

    The condition number is estimated by `POWERS` steps of power iteration on the matrix and on its inverse.
    """
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if failed or not factor.isfinite().all():
        return None
    start = torch.linspace(1, 2, len(matrix), dtype=matrix.dtype, device=matrix.device).cos()[:, None]
    high = low = start / start.norm()
    for _ in range(POWERS):
        high, low = matrix @ high, torch.cholesky_solve(low, factor)
        largest, smallest = float(high.norm()), 1 / max(float(low.norm()), 1e-300)
        high, low = high / largest, low * smallest
    limit = 1 / (len(matrix) * torch.finfo(matrix.dtype).eps)
    return factor if largest < limit * smallest else None


def covariance_for(model: HookedModel, layer: int) -> Covariance:
    """The C that an editor takes where it is given none; of an edited model that of the model before its edits.

    Of the embedded models: over the world's own training text, in seconds. Of another model: the one in the cache that
    `mechedit covariance` has computed of the most tokens; where there is none, over text that the model itself writes,
    with a warning: real text is better, and is taken from then on.
    """
    root, digest = origin(model)
    known = _KNOWN.setdefault(root, {})
    if (digest, layer) not in known:
        with unedited(model):
            known[digest, layer] = _default_covariance(root, digest, layer)
    return known[digest, layer]


_KNOWN: WeakKeyDictionary[HookedModel, dict[tuple[str, int], Covariance]] = WeakKeyDictionary()


def _default_covariance(model: HookedModel, digest: str, layer: int) -> Covariance:
    if model.source.removeprefix("embedded:") in EMBEDDED:
        return covariances(model, embedded_corpus(), layers=range(model.shape.n_layers))[layer]
    stored = [_read(file, model.device) for file in _finished(model, digest, layer)]
    if stored:
        return max(stored, key=lambda c: (c.source != OWN, c.n_tokens))
    log.warning(
        "no covariance of %s at layer %d in %s: it is taken over text that the model writes itself; better, of a text "
        "of yours: %s",
        model.name, layer, cache_folder(), _command(model, layer),
    )  # fmt: skip
    tokens = 2 * model.shape.d_mlp
    return covariances(model, own_corpus(model, tokens), layers=[layer], tokens=tokens)[layer]


def _command(model: HookedModel, layer: int) -> str:
    """What computes C of a text, as it is typed."""
    name = model.called
    if not name:
        return f"mechedit.editors.weights.covariances(model, open_corpus('TEXT.txt'), layers=[{layer}])"
    dtype = str(model.dtype).removeprefix("torch.")
    place = f"--model {shlex.quote(name)}" + (f" --dtype {dtype}" if dtype != "float32" else "")
    return f"mechedit covariance {place} --layers {layer} --text TEXT.txt"


def covariances(
    model: HookedModel,
    corpus: Corpus,
    *,
    layers: Sequence[int],
    tokens: int | None = None,
    progress: bool = True,
) -> dict[int, Covariance]:
    """C of each layer over a text, from the cache or computed and kept.

    Args:
        model: The model.
        corpus: The text.
        layers: Whose C.
        tokens: How many of the text's first tokens count (None: all).
        progress: Shows how far it is, once it takes ten seconds.

    Raises:
        InputError: A layer outside of the model, a text without a token, or `tokens` below one.
    """
    bad = [layer for layer in layers if not 0 <= layer < model.shape.n_layers]
    if bad or not layers or (tokens is not None and tokens < 1):
        raise InputError(
            f"layers: expected some of 0 to {model.shape.n_layers - 1} and at least one token, found {list(layers)} "
            f"and {tokens} tokens"
        )
    files = {layer: _file(model, corpus, layer, tokens) for layer in layers}
    stored = {layer: _read(file, model.device) for layer, file in files.items() if file.is_file()}
    missing = {layer: file for layer, file in files.items() if layer not in stored}
    computed = _computed(model, corpus, missing, tokens, progress) if missing else {}
    return {layer: (stored | computed)[layer] for layer in files}


# --- the pass over the text ---------------------------------------------------------------------------------


@torch.no_grad()
def _computed(
    model: HookedModel, corpus: Corpus, files: dict[int, Path], tokens: int | None, progress: bool
) -> dict[int, Covariance]:
    """One pass over the text for all layers that are missing, from where an earlier one stopped."""
    unfinished = next(iter(files.values())).with_suffix(".unfinished.safetensors")
    if len(files) > 1:
        names = hashlib.sha256(" ".join(file.name for file in files.values()).encode()).hexdigest()
        unfinished = unfinished.with_name(f"covariance-{names}.unfinished.safetensors")
    width = model.shape.d_mlp
    sums, n_tokens, batch = _resumed(unfinished, files, model.device)
    sums = sums or {
        layer: torch.zeros(width, width, dtype=torch.float64, device=model.device) for layer in files
    }
    written = time.monotonic()
    with bar("covariance", tokens, progress=progress, unit=" tokens", start=n_tokens, delay=LONG) as shown:
        for number, texts in enumerate(_batches(model, corpus, tokens)):
            if number < batch:
                continue
            seen = _add(model, texts, sums)
            n_tokens += seen
            shown.update(seen)
            if time.monotonic() - written > SAVE_EVERY:
                _save(unfinished, {str(k): v for k, v in sums.items()}, n_tokens=n_tokens, batch=number + 1)
                written = time.monotonic()
    if not n_tokens:
        raise InputError(f"text: expected at least one token, found none in {corpus.source}")
    results = {}
    for layer, file in counted(list(files.items()), "condition of the covariance", unit="layer"):
        summed = Covariance(sums[layer], n_tokens, layer, corpus.source, _made_of(model, corpus))
        results[layer] = replace(summed, measured=summed.condition)
        _save(
            file,
            {"moment": sums[layer]},
            n_tokens=n_tokens,
            layer=layer,
            source=corpus.source,
            made_of=json.dumps(summed.made_of),
            condition=results[layer].measured,
        )
    unfinished.unlink(missing_ok=True)
    return results


def _batches(model: HookedModel, corpus: Corpus, tokens: int | None) -> Iterator[list[Tensor]]:
    """Windows of the text, a batch at a time, up to `tokens` tokens."""
    left, batch = tokens, []
    for window in windows(model, corpus, length=_window(model)):
        if left is not None:
            window = window[:left]
            left -= len(window)
        if len(window):
            batch.append(window)
        if len(batch) == BATCH or left == 0:
            yield batch
            batch = []
        if left == 0:
            return
    if batch:
        yield batch


def _add(model: HookedModel, texts: Sequence[Tensor], sums: dict[int, Tensor]) -> int:
    """Adds k kᵀ of every token of the texts to the layers' sums; returns how many tokens they have."""
    ids, mask = model.pad(texts)
    real = mask.bool()

    def add(layer: int) -> Any:
        def hook(keys: Tensor, hook: object) -> None:
            k = keys[real].to(torch.promote_types(keys.dtype, torch.float32))
            sums[layer] += (k.mT @ k).double()

        return hook

    with model.hooks([(post(layer), add(layer)) for layer in sums]):
        model.run(ids, mask, logits_to_keep=1)
    return int(real.sum())


# --- the cache ----------------------------------------------------------------------------------------------


def _window(model: HookedModel) -> int:
    return min(WINDOW, model.n_ctx or WINDOW)


def _made_of(model: HookedModel, corpus: Corpus) -> dict[str, Any]:
    return {
        "text": corpus.digest,
        "tokenizer": tokenizer_digest(model.tokenizer),
        "start": model.plain_ids("a").tolist(),  # with a BOS or without
        "window": _window(model),
        "batch": BATCH,
    }


def _file(model: HookedModel, corpus: Corpus, layer: int, tokens: int | None) -> Path:
    key = {**_made_of(model, corpus), "layer": layer, "dtype": str(model.dtype), "tokens": tokens}
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return cache_folder() / f"{_stem(model, model.hash, layer)}{name[:24]}.safetensors"


def _stem(model: HookedModel, digest: str, layer: int) -> str:
    return f"covariance-{SCHEMA_VERSION}-{str(model.dtype).removeprefix('torch.')}-{digest}-{layer}-"


def _finished(model: HookedModel, digest: str, layer: int) -> list[Path]:
    files = cache_folder().glob(f"{_stem(model, digest, layer)}*.safetensors")
    return sorted(file for file in files if "unfinished" not in file.name)


def _read(file: Path, device: torch.device) -> Covariance:
    with safe_open(file, framework="pt") as stored:
        metadata = stored.metadata()
        moment = stored.get_tensor("moment").to(device)
    # A file of an earlier version holds neither; its name has a hash of what it was made of.
    made_of = json.loads(metadata["made_of"]) if "made_of" in metadata else {"kept_as": file.stem[-24:]}
    measured = float(metadata["condition"]) if "condition" in metadata else None
    layer, n_tokens = int(metadata["layer"]), int(metadata["n_tokens"])
    return Covariance(moment, n_tokens, layer, metadata["source"], made_of, measured)


def _resumed(file: Path, files: dict[int, Path], device: torch.device) -> tuple[dict[int, Tensor], int, int]:
    """Sums, tokens and batches of an unfinished pass."""
    if not file.is_file():
        return {}, 0, 0
    with safe_open(file, framework="pt") as stored:
        metadata = stored.metadata()
        sums = {layer: stored.get_tensor(str(layer)).to(device) for layer in files}
    return sums, int(metadata["n_tokens"]), int(metadata["batch"])


def _save(file: Path, tensors: dict[str, Tensor], **numbers: object) -> None:
    """Whole or not at all; where the folder cannot be written the numbers are used and not kept."""
    metadata = {key: str(value) for key, value in numbers.items()}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(file) as temporary:
            save_file({k: v.cpu().contiguous() for k, v in tensors.items()}, temporary, metadata=metadata)
    except OSError as error:
        log.warning("%s: cannot keep the covariance (%s)", file, error.strerror)
