"""What MEGA chooses for itself, on facts that are never evaluated.

1. *Window*: the run of layers where a statement in context that succeeds writes more of the new object than one that
   fails (`mechedit.attribution.statement`), made wider by its own size as long as more prompts give the new object.
   *Heads*, where a number of them is asked for: those in the window whose attribution differs most, success minus
   failure.
2. *Target*: the form of the target prompts after which the model says the new object most often.
3. *Rank*: the first of the candidates, the lowest before higher ones, with which most rewrite, paraphrase and doubt
   prompts of the facts give the new object, ungated, each edit as strong as its own prompts need.
4. *Gate*: of "asked" what `mechedit.editors.steering.relation_prompts` learns. Of the others layer and threshold with
   the fewest errors on the facts' own paraphrases and doubts against their neighbours and doubts about those, or the
   largest threshold within a stated rate of false openings; of layers at or below the first steered one: then one pass
   over a prompt both decides and steers.

Everything chosen goes into the editor's `choice`, and with it into every edit and its file.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, Protocol, TypeVar

import numpy as np
import pandas as pd
import torch

from experiments.progress import LONG, bar
from mechedit.attribution.statement import StatementContrast, statement_contrast
from mechedit.data.facts import FactEdit, facts_hash
from mechedit.editors.steering.asked_gate import RelationSpace, without_subject
from mechedit.editors.steering.fit import STRENGTHS, Fits, Goals, Place
from mechedit.editors.steering.fit_prompts import TargetForm, doubts
from mechedit.editors.steering.gates import CentredGate, Whitening, calibrate, nearest, roc, whitening
from mechedit.editors.steering.relation_prompts import learn_asked, other_questions, own_relations
from mechedit.editors.steering.transport import AffineMap
from mechedit.models.ends import PromptEnds
from mechedit.models.hooked import HookedModel
from mechedit.models.hooking import resid_pre
from mechedit.models.states import last_states
from reports.errors import InputError
from reports.results import Result

__all__ = ["RANKS", "GateROC", "gate_roc", "select"]

log = logging.getLogger(__name__)

DEPTH = (0.65, 0.85)  # of the model, first and last steered layer where no contrast names them
UNNAMED = 1e6  # the distance of a prompt that does not name the subject
RANKS = (0, 1, 4, None)  # few paraphrases tell few directions: the simplest map that does it
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
    def target(self) -> TargetForm | Literal["auto"]: ...
    @property
    def sequential(self) -> bool: ...
    @property
    def gate(self) -> str: ...
    @property
    def gate_layer(self) -> int | None: ...
    @property
    def threshold(self) -> float | None: ...
    @property
    def whitening(self) -> Whitening | None: ...
    @property
    def relations(self) -> RelationSpace | None: ...
    def plain_prompts(self, fact: FactEdit) -> list[str]: ...
    @property
    def doubted(self) -> bool: ...
    @property
    def max_fpr(self) -> float | None: ...
    def apply(
        self, model: HookedModel, facts: FactEdit | Sequence[FactEdit]
    ) -> AbstractContextManager[HookedModel]: ...
    def layers(self, model: HookedModel) -> tuple[int, int]: ...
    def place(self, layers: Iterable[int]) -> Place: ...
    def fits(self, model: HookedModel, facts: Sequence[FactEdit], place: Place) -> Fits: ...
    def goals(self, fits: Fits, facts: Sequence[FactEdit]) -> tuple[list[Goals], list[TargetForm]]: ...
    def successes(self, fits: Fits, facts: Sequence[FactEdit]) -> dict[TargetForm, list[int]]: ...
    def make_map(self, source: torch.Tensor, target: torch.Tensor, n_implied: int) -> AffineMap: ...
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


def select(
    editor: S, model: HookedModel, facts: Sequence[FactEdit], *, contrast: StatementContrast | None = None
) -> S:
    """`editor` with window, heads, target, rank, gate layer and threshold chosen on `facts`; see the module."""
    chosen, choice = editor, {"n_facts": len(facts), "facts": facts_hash(facts)}
    if editor.window == "auto" or isinstance(editor.heads, int):
        chosen, outcomes = _placed(editor, model, facts, contrast)
        choice |= outcomes
    if "auto" in (editor.window, editor.target, editor.rank):
        chosen, share = _best_map(chosen, model, facts, widen=editor.window == "auto")
        choice |= {"right_ungated": share}
    if editor.gate == "asked" and (editor.threshold is None or editor.relations is None):
        own = [editor.plain_prompts(fact) for fact in facts]
        space, learned, rates = learn_asked(model, facts, own, max_fpr=editor.max_fpr)
        threshold = learned if editor.threshold is None else editor.threshold
        rates = rates if editor.threshold is None else {}  # they are the learned threshold's
        chosen = replace(chosen, relations=space, threshold=threshold, gate_layer=space.layer)
        choice |= rates
    elif editor.gate != "always" and editor.threshold is None:
        chosen, rates = _calibrated(chosen, model, facts)
        choice |= rates
    settings = {
        name: getattr(chosen, name)
        for name in ("window", "target", "alpha", "rank", "gate_layer", "threshold")
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
        near, far = (
            _asked_distances(editor, model, facts)
            if editor.gate == "asked"
            else _distances(editor, model, facts, [layer], white)[0]
        )
        curve = roc(near, far)
        curves.append(curve.assign(gate=editor.gate, layer=layer))
        area = float(np.trapezoid(curve["true_rate"], curve["false_rate"]))
        errors = float((1 - curve["true_rate"] + curve["false_rate"]).min())
        areas.append((editor.gate, layer, area, len(near), len(far), errors))
    columns = ["gate", "layer", "area", "n_own", "n_foreign", "errors"]
    return GateROC(pd.concat(curves, ignore_index=True), pd.DataFrame(areas, columns=columns))


def _asked_distances(
    editor: Selectable, model: HookedModel, facts: Sequence[FactEdit]
) -> tuple[list[float], list[float]]:
    """What the log-odds of the facts' own and of foreign prompts lack to the surest of them."""
    space = editor.relations
    assert space is not None
    sides: tuple[list[float], list[float]] = ([], [])
    for fact in facts:
        names, relations = (fact.subject, *fact.aliases), own_relations(fact)
        groups = [
            editor.plain_prompts(fact),
            fact.paraphrase_prompts,
            (*fact.neighborhood_prompts, *other_questions(fact)),
        ]
        (states,) = last_states(model, [p for group in groups for p in group], [resid_pre(space.layer)])
        centres, *asked = space.coordinates(states).split([len(group) for group in groups])
        for side, prompts, coordinates in zip(sides, groups[1:], asked, strict=True):
            scores = space.log_odds(coordinates, centres, relations).tolist() if prompts else []
            for prompt, score in zip(prompts, scores, strict=True):
                text = without_subject(prompt, names)
                words = space.words.log_odds(text or "", relations)
                side.append(UNNAMED if text is None else -(score + words))
    least = min(sides[0] + sides[1])
    return [d - least for d in sides[0]], [d - least for d in sides[1]]


# -- pieces --------------------------------------------------------------------------------------------------


def _placed(
    editor: S, model: HookedModel, facts: Sequence[FactEdit], contrast: StatementContrast | None
) -> tuple[S, dict[str, Any]]:
    """Step 1: with window and heads by the contrast, and how many statements it is of.

    Where every statement or none succeeds there is nothing to contrast: the window then stands at the depth at which it
    was found on the models that have one, which is said.
    """
    try:
        contrast = contrast or statement_contrast(model, facts, heads=isinstance(editor.heads, int))
    except InputError as error:
        if isinstance(editor.heads, int):
            raise
        first, last = (round(share * (model.shape.n_layers - 1)) for share in DEPTH)
        log.warning("window: layers %d to %d, by depth alone: %s", first, last, error)
        return replace(editor, window=(first, last)), {"window_by": "depth"}
    chosen = editor
    if editor.window == "auto":
        chosen = replace(chosen, window=contrast.window)
    if isinstance(editor.heads, int):
        chosen = replace(chosen, heads=_named(contrast.heads, chosen.layers(model), editor.heads))
    return chosen, {"n_success": contrast.n_success, "n_failure": contrast.n_failure}


def _named(heads: pd.DataFrame, window: tuple[int, int], count: int) -> dict[int, tuple[int, ...]]:
    """The `count` heads of the window with the largest difference, by layer."""
    if count < 1:
        raise InputError(f"heads: expected at least 1, found {count}")
    inside = heads[heads["layer"].between(*window)].nlargest(count, "difference")
    groups = inside.sort_values(["layer", "head"]).groupby("layer")["head"]
    return {int(layer): tuple(int(head) for head in group) for layer, group in groups}


def _wider(first: int, last: int, n_layers: int) -> list[tuple[int, int]]:
    """The window made wider by its own size: below, above, and on both sides.

    >>> _wider(22, 23, 30), _wider(20, 25, 30)
    ([(20, 23), (22, 25), (20, 25)], [(14, 25), (20, 29), (14, 29)])
    """
    size = last - first + 1
    below, above = max(0, first - size), min(n_layers - 1, last + size)
    windows = dict.fromkeys([(below, last), (first, above), (below, above)])
    return [window for window in windows if window != (first, last)]


@torch.no_grad()
def _best_map(editor: S, model: HookedModel, facts: Sequence[FactEdit], *, widen: bool) -> tuple[S, float]:
    """Steps 1 to 3: the form, then the window, then the rank that gets most prompts right, and its share.

    The window grows by its own size as long as that helps: where the contrast names few layers, a map in them alone is
    often too little. Below the steered layers nothing differs between the candidates: all prompts run once, and for
    each candidate their last tokens alone.
    """
    named = editor.layers(model)
    layers = range(model.shape.n_layers) if widen else range(named[0], named[1] + 1)
    ranks = RANKS if editor.rank == "auto" else (editor.rank,)
    with bar("window and map", None, unit="trial", delay=LONG) as shown:
        fits = editor.fits(model, facts, editor.place(layers))
        shown.update()
        goals, editor = _best_form(editor, fits, facts)
        shown.update()
        trial = _Trial(model, fits, goals, [_own_prompts(editor, fact) for fact in facts])

        def better(best: tuple[float, S], candidates: Iterable[S]) -> tuple[float, S]:
            for candidate in candidates:
                if best[0] == 1.0:
                    break
                best = max(best, (trial.share_right(candidate), candidate), key=lambda pair: pair[0])
                shown.update()
            return best

        first = replace(editor, window=named, rank=ranks[0])
        best, before = (trial.share_right(first), first), -1.0
        while widen and before < best[0] < 1.0:
            before, window = best[0], best[1].layers(model)
            best = better(best, (replace(best[1], window=w) for w in _wider(*window, model.shape.n_layers)))
        best = better(best, (replace(best[1], rank=rank) for rank in ranks[1:]))
    return best[1], best[0]


def _best_form(editor: S, fits: Fits, facts: Sequence[FactEdit]) -> tuple[list[Goals], S]:
    """The editor with the form of target that succeeds most often over all facts, and the facts' targets."""
    if editor.target == "auto":
        counts = editor.successes(fits, facts)
        editor = replace(editor, target=max(counts, key=lambda form: sum(counts[form])))
    return editor.goals(fits, facts)[0], editor


class _Trial:
    """Prompts of the selection's facts, by which candidates are held against each other."""

    def __init__(
        self,
        model: HookedModel,
        fits: Fits,
        goals: Sequence[Goals],
        prompts: Sequence[Sequence[str]],
    ) -> None:
        self._model, self._fits, self._goals = model, fits, goals
        asked = zip(fits.prompts, prompts, strict=True)
        self._ends = PromptEnds(model, [ids for one, texts in asked for ids in one.ids(model, texts)])
        self._owner = [i for i, of_fact in enumerate(prompts) for _ in of_fact]
        self._token = torch.tensor([fits.prompts[i].new for i in self._owner])

    def share_right(self, editor: Selectable) -> float:
        """The share of the prompts that give the new object under the edits of `editor`, gates open."""
        first, last = editor.layers(self._model)
        maps = self._fits.maps(
            self._goals,
            editor.place(range(first, last + 1)).layers,
            editor.make_map,
            sequential=editor.sequential,
        )
        among = STRENGTHS if editor.alpha == "auto" else (editor.alpha,)
        alphas = [alpha for alpha, _ in self._fits.strengths(maps, among)]
        said = self._fits.steered(self._ends, self._owner, maps, alphas).argmax(-1).cpu()
        return float((said == self._token).double().mean())


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
