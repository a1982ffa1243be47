"""Can a number measured on this model be trusted? Every check is a row: measured, tolerance, and what to change.

1. The model alone (`mechedit.models.checks`): padding and batch mates (with the forgotten mask as the control), BOS,
   hooks, folded norms, conservation; whether a special token in front of a text helps (`mechedit.models.prefix_check`).
2. Beside a second load of the same checkpoint: logits against `transformers` alone, in eager and in sdpa attention;
   against float64 (float32 where float64 does not fit), which is the error that the dtype costs; against a
   TransformerLens bridge with its norms folded, where the model is small.
3. An attribution: its completeness gap against what it states, and the memory it takes beyond the weights.

The package works on the checkpoint's raw weights. Folding a norm changes no logit, but its weight moves into W_Q, W_K,
W_V, W_in and W_U: neuron for neuron, numbers agree with those of a folded TransformerLens model only where both are
products (m_i · W_out[i] is the same, a row of W_in or W_U is not), and centring (`center_unembed`) shifts all logits of
a position by one number, which a softmax does not see.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from experiments.checkpoints import progress_bar, second_load
from experiments.memory import free_bytes, size, watched
from mechedit.attribution import attribute
from mechedit.models import checks
from mechedit.models.embedded import here
from mechedit.models.hooked import HookedModel, load_model
from mechedit.models.loading import read_model
from mechedit.models.prefix_check import best_prefix
from mechedit.models.selfcheck import TOLERANCE, share_off
from reports.diagnosis import Check, Diagnosis, Step, gathered
from reports.errors import InputError

__all__ = ["PROBES", "Diagnosis", "diagnose"]

PROBES = (
    ("The mother tongue of Danielle Darrieux is", "French"),
    ("Once upon a time, there was a little girl who", "lived"),
    ("Anna was born in", "Berlin"),
    ("The Eiffel Tower is located in the city of Paris, which is the capital of", "France"),
)
#: The largest model, in bytes, of which a second bridge with folded norms is made.
SMALL = 500_000_000
#: What the layer scores may miss of log p, in nats, whatever the dtype: smaller differences of scores mean nothing.
GAP = 1e-3


def diagnose(model: HookedModel, probes: Sequence[tuple[str, str]] = PROBES) -> Diagnosis:
    """All checks on `model` as it is loaded.

    Takes as much memory again as the weights have in float64; a check that does not fit is left out, and `notes` says
    so. A check that cannot be carried out is a row that is not ok.

    Args:
        model: Any loaded model.
        probes: (prompt, target) each, two or more of different lengths.

    Raises:
        InputError: All probes have one length, or no position predicts a target.

    >>> import mechedit as me
    >>> diagnosis = me.diagnose(me.load_model("factworld"))
    >>> diagnosis.ok, diagnosis.measured("the mask forgotten") > 0.01
    (True, True)
    """
    ids = [model.continuation(prompt, target)[0] for prompt, target in probes]
    if len(set(map(len, ids))) < 2:
        raise InputError(
            f"probes: expected two or more of unlike length, found {len(ids)}; a batch must pad one"
        )
    notes: list[str] = []
    steps: list[Step] = [
        ("memory", lambda: _memory(model, probes)),
        ("completeness gap", lambda: _gap(model, probes)),
        ("padding", lambda: checks.invariance(model, ids)),
        ("BOS", lambda: checks.special_tokens(model, probes)),
        ("special token in front", lambda: best_prefix(model, notes)),
        ("hooks fire once", lambda: checks.hooks_fire(model, ids)),
        ("folded norms", lambda: checks.folded_norms(model, ids)),
        ("conservation", lambda: checks.identities(model, ids)),
    ]
    steps += _beside(model, ids, notes)
    rows = list(gathered(steps))
    return Diagnosis.of(
        rows,
        subject=model.name,
        dtype=str(model.dtype).removeprefix("torch."),
        device=str(model.device),
        attention=str(getattr(model.hf.config, "_attn_implementation", "unknown")),
        notes=tuple(notes),
        provenance=model.provenance(data={"probes": [list(pair) for pair in probes]}, seeds={}),
    )


# -- beside a second load --------------------------------------------------------------------------------------------


def _beside(model: HookedModel, ids: list[Tensor], notes: list[str]) -> Iterator[Step]:
    """The checks that load the checkpoint again, as far as there is a checkpoint and memory for it."""
    n_weights = sum(weight.numel() for weight in model.hf.parameters())
    n_bytes, free = n_weights * model.dtype.itemsize, free_bytes(model.device)
    folder, why = second_load(
        model.source, embedded=here(), n_bytes=n_bytes, device=model.device, loader="load_model"
    )
    if folder is None:
        notes.append(why)
        return
    yield "logits of transformers", lambda: _plain(model, folder, ids)
    wide = torch.float64 if n_weights * 8 <= free else torch.float32
    if n_weights * wide.itemsize <= free:
        yield "dtype", lambda: _dtype(model, folder, ids, wide)
    else:
        notes.append(
            f"no dtype budget: float32 takes {size(n_weights * 4)}, {size(free)} are free on {model.device}"
        )
    if not getattr(model.bridge.adapter, "supports_fold_ln", True):
        notes.append("no folded TransformerLens bridge: TransformerLens folds no norms of this architecture")
    elif n_bytes <= SMALL:
        yield "folded TransformerLens", lambda: _folded(model, folder, ids)
    else:
        notes.append(
            f"no folded TransformerLens bridge: made of models up to {size(SMALL)}, this has {size(n_bytes)}"
        )


@torch.no_grad()
def _plain(model: HookedModel, folder: Path, ids: list[Tensor]) -> Iterator[Check]:
    """The checkpoint by `transformers` alone, on the same device and in the same dtype."""
    with progress_bar(shown=False):
        plain = read_model(folder, dtype=model.dtype).eval()
    torch.nn.Module.to(plain, model.device)
    for attention in ("eager", "sdpa"):
        plain.set_attn_implementation(attention)
        errors = [
            share_off(_logits(model, probe), plain(probe[None], use_cache=False).logits[0]) for probe in ids
        ]
        yield Check(
            f"logits of transformers, {attention}",
            max(errors),
            TOLERANCE[model.dtype],
            "of the largest logit, at every position",
            "the loaded model is not what its checkpoint says: it was changed after loading, or its architecture is "
            "bridged wrongly; load it again, and report it if that changes nothing",
            n=len(errors),
        )


@torch.no_grad()
def _dtype(model: HookedModel, folder: Path, ids: list[Tensor], wide: torch.dtype) -> Iterator[Check]:
    """What the dtype costs: the same probes in a wider one."""
    reference, name = (
        load_model(folder, device=str(model.device), dtype=wide),
        str(wide).removeprefix("torch."),
    )
    pairs = [(_logits(model, probe)[-1], _logits(reference, probe)[-1]) for probe in ids]
    yield Check(
        f"logits against {name}",
        max(share_off(logits, true) for logits, true in pairs),
        TOLERANCE[model.dtype],
        f"of the largest logit; {max(float((a.double() - b.double()).abs().max()) for a, b in pairs):.1e} at most",
        "more than this dtype's rounding: its sums overflow or lose their small terms; use float32",
        n=len(pairs),
    )
    changed = [i for i, (logits, true) in enumerate(pairs) if logits.argmax() != true.argmax()]
    yield Check(
        f"top-1 against {name}",
        len(changed),
        0,
        "probes whose likeliest token is another",
        "a success or a failure of an edit may be rounding alone: use float32",
        n=len(pairs),
    )


@torch.no_grad()
def _folded(model: HookedModel, folder: Path, ids: list[Tensor]) -> Iterator[Check]:
    """TransformerLens' own fold_ln, on a bridge of its own."""
    with progress_bar(shown=False):
        bridge = TransformerBridge.boot_transformers(
            str(folder),
            hf_model=read_model(folder, dtype=model.dtype) if folder.is_file() else None,
            tokenizer=copy.deepcopy(model.tokenizer),
            device=str(model.device),
            dtype=model.dtype,
        )
    bridge.enable_compatibility_mode(
        center_unembed=False, center_writing_weights=False, fold_value_biases=False, disable_warnings=True
    )
    errors = [share_off(bridge(probe[None])[0], _logits(model, probe)) for probe in ids]
    yield Check(
        "folded TransformerLens",
        max(errors),
        TOLERANCE[model.dtype],
        "of the largest logit, against a bridge with fold_ln",
        "numbers of a folded TransformerLens model cannot be held against this package's; compare raw bridges",
        n=len(errors),
    )


# -- an attribution --------------------------------------------------------------------------------------------------


def _memory(model: HookedModel, probes: Sequence[tuple[str, str]]) -> Iterator[Check]:
    """Peak memory of the longest probe's attribution, above what the process held before this first check."""
    prompt, target = max(probes, key=lambda pair: len(model.tokenize(pair[0])))
    n_bytes = sum(weight.numel() * weight.itemsize for weight in model.hf.parameters())
    before = free_bytes(model.device)
    with watched(model.device) as peak:
        attribute(model, prompt, target)
    billions = before / model.dtype.itemsize / 1e9
    yield Check(
        "memory of an attribution",
        peak[0],
        before,
        f"bytes at the peak: {size(peak[0])} above weights of {size(n_bytes)}; {size(before)} were free, which is room "
        f"for {billions:.1f} billion weights more in {str(model.dtype).removeprefix('torch.')}",
        "shorter prompts or a smaller top_k take less; so does dtype=bfloat16, which the rows below judge",
    )


def _gap(model: HookedModel, probes: Sequence[tuple[str, str]]) -> Iterator[Check]:
    """What the scores of the embedding and of all layers miss of log p(target)."""
    gaps = [abs(attribute(model, *pair, top_k=1).completeness_gap) for pair in probes]
    yield Check(
        "completeness gap",
        max(gaps),
        GAP,
        "nats of log p(target) that the layer scores miss",
        "residual stream and sub-layers do not add up at this precision: attribute in float32",
        n=len(gaps),
    )


def _logits(model: HookedModel, ids: Tensor) -> Tensor:
    """Logits [T, d_vocab] of ids [T]."""
    return model.run(*model.pad([ids]))[0][0]
