"""What MEGA chooses for itself, on facts that are never evaluated.

1. *Window*: the run of layers where a statement in context that succeeds writes more of the new object than one that
   fails (`mechedit.anatomy`). *Heads*, where a number of them is asked for: those in the window whose attribution
   differs most, success minus failure.
2. *Alpha*, *rank*: the first of the candidates, the lowest rank before higher ones, with which most rewrite, paraphrase
   and doubt prompts of the facts give the new object, ungated.
3. *Gate*: layer and threshold with the fewest errors on the facts' own paraphrases and doubts against their neighbours
   and doubts about those, or the largest threshold within a stated rate of false openings. Of layers at or below the
   first steered one: then one pass over a prompt both decides and steers.

Everything chosen goes into the editor's `choice`, and with it into every edit and its file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any, ClassVar, Literal, Protocol, TypeVar

import numpy as np
import pandas as pd
import torch

from mechedit.attribution.statement import statement_contrast
from mechedit.data.facts import FactEdit, facts_hash
from mechedit.editors.steering.fit_prompts import doubts
from mechedit.editors.steering.gates import CentredGate, Whitening, calibrate, nearest, roc, whitening
from mechedit.models.deciding import says_object
from mechedit.models.hooked import HookedModel
from reports.errors import InputError
from reports.results import Result

__all__ = ["ALPHAS", "RANKS", "GateROC", "gate_roc", "select"]

# A mean over paraphrases falls short of any one of them, so going past it can pay.
ALPHAS = (1.0, 1.5, 2.0)
RANKS = (1, 4, None)  # few paraphrases tell few directions: the simplest map that does it
# Doubts about this many neighbours stand for foreign doubts: each is as long as several prompts.
DOUBTED_NEIGHBOURS = 2


class Selectable(Protocol):
    """A steering editor as the selection sees it (`mechedit.editors.steering.mega.MEGA` says what each field is)."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def name(self) -> str: ...
    @property
    def window(self) -> tuple[int, int] | Literal["auto"]: ...
    @property
    def heads(self) -> Any: ...
    @property
    def alpha(self) -> float | Literal["auto"]: ...
    @property
    def rank(self) -> Any: ...
    @property
    def gate(self) -> str: ...
    @property
    def gate_layer(self) -> int | None: ...
    @property
    def threshold(self) -> float | None: ...
    @property
    def whitening(self) -> Whitening | None: ...
    @property
    def doubted(self) -> bool: ...
    @property
    def max_fpr(self) -> float | None: ...
    def apply(
        self, model: HookedModel, facts: FactEdit | Sequence[FactEdit]
    ) -> AbstractContextManager[HookedModel]: ...
    def layers(self, model: HookedModel) -> tuple[int, int]: ...
    def head_map(self) -> dict[int, tuple[int, ...]]: ...
    def centre_prompts(self, fact: FactEdit) -> list[str]: ...
    def gate_states(
        self, model: HookedModel, prompts: Sequence[str], layers: Sequence[int]
    ) -> list[torch.Tensor]: ...
    def gate_of(
        self, centres: torch.Tensor, *, layer: int, threshold: float, whitening: Whitening | None
    ) -> CentredGate: ...


S = TypeVar("S", bound=Selectable)


@dataclass(frozen=True, eq=False, repr=False)
class GateROC(Result):
    """How well a kind of gate tells an edit's own prompts from foreign ones.

    Attributes:
        curves: Frame gate, layer, threshold, true_rate, false_rate.
        areas: Frame gate, layer, area (under the curve), n_own, n_foreign, errors (least miss rate + false rate).
        provenance: What the numbers depend on.
    """

    kind: ClassVar[str] = "gate_roc"
    curves: pd.DataFrame
    areas: pd.DataFrame
    provenance: dict[str, Any] = field(default_factory=dict)


def select(editor: S, model: HookedModel, facts: Sequence[FactEdit]) -> S:
    """`editor` with window, heads, alpha, rank, gate layer and threshold chosen on `facts`; see the module."""
    chosen, choice = editor, {"n_facts": len(facts), "facts": facts_hash(facts)}
    if editor.window == "auto" or isinstance(editor.heads, int):
        contrast = statement_contrast(model, facts)
        if editor.window == "auto":
            chosen = replace(chosen, window=contrast.window)
        if isinstance(editor.heads, int):
            chosen = replace(chosen, heads=_named(contrast.heads, chosen.layers(model), editor.heads))
        choice |= {"n_success": contrast.n_success, "n_failure": contrast.n_failure}
    if editor.alpha == "auto" or editor.rank == "auto":
        chosen, share = _best_map(chosen, model, facts)
        choice |= {"right_ungated": share}
    if editor.gate != "always" and editor.threshold is None:
        chosen, rates = _calibrated(chosen, model, facts)
        choice |= rates
    settings = {
        name: getattr(chosen, name) for name in ("window", "alpha", "rank", "gate_layer", "threshold")
    }
    return replace(
        chosen, choice={**choice, **settings, "heads": {str(k): v for k, v in chosen.head_map().items()}}
    )


def gate_roc(editors: Sequence[Selectable], model: HookedModel, facts: Sequence[FactEdit]) -> GateROC:
    """The `GateROC` of each editor's gate, at its own gate layer, on `facts` (the selection's, or others).

    Raises:
        InputError: The gate of an editor is always open.
    """
    curves, areas = [], []
    for editor in editors:
        if editor.gate == "always":
            raise InputError(f"editors: expected gates that ask something, found 'always' in {editor.name!r}")
        layer = editor.gate_layer or 0
        white = {} if editor.whitening is None else {layer: editor.whitening}
        ((near, far),) = _distances(editor, model, facts, [layer], white)
        curve = roc(near, far)
        curves.append(curve.assign(gate=editor.gate, layer=layer))
        area = float(np.trapezoid(curve["true_rate"], curve["false_rate"]))
        errors = float((1 - curve["true_rate"] + curve["false_rate"]).min())
        areas.append((editor.gate, layer, area, len(near), len(far), errors))
    columns = ["gate", "layer", "area", "n_own", "n_foreign", "errors"]
    return GateROC(pd.concat(curves, ignore_index=True), pd.DataFrame(areas, columns=columns))


# -- pieces --------------------------------------------------------------------------------------------------


def _named(heads: pd.DataFrame, window: tuple[int, int], count: int) -> dict[int, tuple[int, ...]]:
    """The `count` heads of the window with the largest difference, by layer."""
    if count < 1:
        raise InputError(f"heads: expected at least 1, found {count}")
    inside = heads[heads["layer"].between(*window)].nlargest(count, "difference")
    groups = inside.sort_values(["layer", "head"]).groupby("layer")["head"]
    return {int(layer): tuple(int(head) for head in group) for layer, group in groups}


def _best_map(editor: S, model: HookedModel, facts: Sequence[FactEdit]) -> tuple[S, float]:
    """The first of the candidates that gets most prompts right, and its share; it stops at one that gets all."""
    alphas = ALPHAS if editor.alpha == "auto" else (editor.alpha,)
    ranks = RANKS if editor.rank == "auto" else (editor.rank,)
    best: tuple[float, S] | None = None
    for rank, alpha in product(ranks, alphas):
        candidate = replace(editor, alpha=alpha, rank=rank, gate="always")
        share = _share_right(candidate, model, facts)
        if best is None or share > best[0]:
            best = share, replace(editor, alpha=alpha, rank=rank)
        if share == 1.0:
            break
    assert best is not None
    return best[1], best[0]


@torch.no_grad()
def _share_right(editor: Selectable, model: HookedModel, facts: Sequence[FactEdit]) -> float:
    right, total = 0, 0
    for fact in facts:
        prompts = _own_prompts(editor, fact)
        with editor.apply(model, fact) as edited:
            right += sum(says_object(edited, prompts, fact.target_new, fact.target_true, space=fact.space))
        total += len(prompts)
    return right / total


def _own_prompts(editor: Selectable, fact: FactEdit) -> list[str]:
    """Prompts that the gate should open for."""
    plain = [fact.rewrite_prompt, *fact.paraphrase_prompts]
    return plain + (doubts(fact, [fact.rewrite_prompt]) if editor.doubted else [])


def _foreign_prompts(editor: Selectable, fact: FactEdit) -> list[str]:
    """Prompts that the gate should stay closed for."""
    near = list(fact.neighborhood_prompts)
    return near + (doubts(fact, near[:DOUBTED_NEIGHBOURS]) if editor.doubted else [])


def _calibrated(editor: S, model: HookedModel, facts: Sequence[FactEdit]) -> tuple[S, dict[str, float]]:
    """With gate layer and threshold; and the rates of missed and of false openings on the facts."""
    first, _ = editor.layers(model)
    layers = list(range(first + 1)) if editor.gate_layer is None else [editor.gate_layer]
    if editor.gate == "sentence":
        layers = [0]
    best: tuple[float, S, dict[str, float]] | None = None
    white = dict(_whitenings(editor, model, facts, layers))
    for layer, (near, far) in zip(layers, _distances(editor, model, facts, layers, white), strict=True):
        threshold = calibrate(near, far, max_fpr=editor.max_fpr)
        missed = sum(d > threshold for d in near) / len(near)
        false = sum(d <= threshold for d in far) / len(far)
        if best is None or missed + false <= best[0]:  # of equals the deepest: it has seen the most
            chosen = replace(editor, gate_layer=layer, threshold=threshold, whitening=white.get(layer))
            best = missed + false, chosen, {"gate_missed": missed, "gate_false": false}
    assert best is not None
    return best[1], best[2]


def _whitenings(
    editor: Selectable, model: HookedModel, facts: Sequence[FactEdit], layers: Sequence[int]
) -> Iterator[tuple[int, Whitening]]:
    if editor.gate == "mahalanobis":
        prompts = [
            prompt
            for fact in facts
            for prompt in (*editor.centre_prompts(fact), *_foreign_prompts(editor, fact))
        ]
        for layer, states in zip(layers, editor.gate_states(model, prompts, layers), strict=True):
            yield layer, whitening(states)


def _distances(
    editor: Selectable,
    model: HookedModel,
    facts: Sequence[FactEdit],
    layers: Sequence[int],
    white: Mapping[int, Whitening],
) -> list[tuple[list[float], list[float]]]:
    """For each layer the distances to the facts' centres, of their own and of foreign prompts."""
    distances: list[tuple[list[float], list[float]]] = [([], []) for _ in layers]
    for fact in facts:
        groups = (editor.centre_prompts(fact), _own_prompts(editor, fact)[1:], _foreign_prompts(editor, fact))
        states = editor.gate_states(model, [p for group in groups for p in group], layers)
        for pair, layer, at_layer in zip(distances, layers, states, strict=True):
            gate = editor.gate_of(at_layer[:1], layer=layer, threshold=1.0, whitening=white.get(layer))
            centres, *sides = gate.coordinates(at_layer).split([len(group) for group in groups])
            for side, coordinates in zip(pair, sides, strict=True):
                side.extend(nearest(coordinates, centres).tolist() if len(coordinates) else [])
    return distances
