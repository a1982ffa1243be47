"""MEGA: steer the attention outputs of the layers that attribution names; change no weight.

Source: "The Anatomy of an Edit" (arXiv 2603.20795) for the idea: an intervention on the attention residual in
attribution-aligned layers. The paper's details are not public; the map is the one of SAKE (arXiv 2503.01751), which it
is said to build on. Steps, for one fact:

1. *Prompts*: paraphrases p_j of the rewrite prompt are the source; the target is the same question after a statement of
   the new fact, in the form after which the model says the new object most often, and only where it does
   (`mechedit.editors.steering.fit_prompts`): a target that fails is no target.
2. *Map*: at each layer of the window, a Gaussian map from the source's attention outputs at the last token to the
   target's, in the span of the prompts (`mechedit.editors.steering.transport`). Fitted in order, with the earlier
   layers' maps active, so that each map starts from the states it will really meet
   (`mechedit.editors.steering.fit`). The edit goes as far along them as its own prompts need, and no further. Tokens of
   the object that the model does not go on with by itself have maps of their own
   (`mechedit.editors.steering.whole_object`).
3. *Gate*: opens where the prompt's state below the window is near one of the edit's own prompts
   (`mechedit.editors.steering.gates`).
4. *Steer*: `a' = a + α · P (M z + c)` (`mechedit.editors.steering.steer`).

Window, alpha, rank, heads, gate layer and threshold are chosen on facts that are never evaluated, by
`MEGA().select(model, facts)` (`mechedit.editors.steering.selection`).
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from experiments.settings import fingerprint
from mechedit.attribution.statement import StatementContrast
from mechedit.data.facts import FactEdit
from mechedit.editors.base import as_facts
from mechedit.editors.contexts import Lengths, contexts
from mechedit.editors.settings import plain
from mechedit.editors.steering.asked_gate import AskedGate, Gate, RelationSpace
from mechedit.editors.steering.fit import STRENGTHS, FitPrompts, Fits, Goals, Place
from mechedit.editors.steering.fit_prompts import (
    Source,
    TargetForm,
    align_implications,
    doubts,
    implication_pairs,
    sources,
    targets,
)
from mechedit.editors.steering.gates import (
    AlwaysOn,
    CentredGate,
    Distance,
    HiddenGate,
    SentenceGate,
    Whitening,
)
from mechedit.editors.steering.paraphrases import Paraphrases, implications, paraphrases
from mechedit.editors.steering.relation_prompts import own_relations
from mechedit.editors.steering.selection import select
from mechedit.editors.steering.sentence_encoder import encoder_hash, sentence_encoder
from mechedit.editors.steering.sites import Heads, SiteName, site_of
from mechedit.editors.steering.steer import SteeredModel, steer, unsteered
from mechedit.editors.steering.steering_edit import Position, SteeringEdit
from mechedit.editors.steering.transport import AffineMap, gaussian_map, mean_shift
from mechedit.editors.steering.whole_object import with_whole_objects
from mechedit.models.deciding import decide
from mechedit.models.hooked import HookedModel
from mechedit.models.hooking import resid_pre
from mechedit.models.states import last_states, mean_states
from reports.errors import InputError

__all__ = ["MEGA", "GateKind"]

log = logging.getLogger(__name__)

Window = tuple[int, int]
GateKind = Literal["asked", "hidden", "cosine", "mahalanobis", "mean", "sentence", "always"]
TRIED = 3  # targets of a fact by which the forms are held against each other
_DISTANCE: dict[str, Distance] = {"cosine": "cosine", "mahalanobis": "mahalanobis"}


@dataclass(frozen=True)
class MEGA:
    """The editor: `MEGA(window=(4, 7)).apply(model, fact)`.

    Attributes:
        window: First and last layer that are steered, or "auto": to be chosen by `select`.
        site: What is steered there (`mechedit.editors.steering.sites`); the attention's output by default.
        heads: Steer only some heads' outputs: how many of the window's heads the attribution shall name (chosen by
            `select`), or the heads of each layer. None: the whole attention output.
        estimator: "transport", or "shift", the control that only moves the mean.
        source: What the map starts from: "plain" paraphrases, prompts with the old object "forced", or "both".
        target: The form of the target prompts; "auto": what `select` chooses, else the one that succeeds most.
        all_targets: Fit on all targets, those too behind which the model does not say the new object.
        implicate: Fit implication prompts too (`mechedit.editors.steering.paraphrases.implications`).
        alpha: How far along the map; 0 steers nothing (the gate alone), above 1 goes past the target, "auto": each edit
            goes as far as its own prompts need (`mechedit.editors.steering.fit.STRENGTHS`).
        reg: Regularisation of both covariances, in squared units of the state; the larger, the nearer the transport
            comes to the mean shift.
        rank: Principal directions that the map may use (0: it moves the mean alone; None: all; "auto": what `select`
            chooses, else all).
        sequential: Fit each layer with the earlier layers' maps active.
        position: Steer the prompt's end, and behind it those tokens of the new object that the model does not go on
            with by itself ("object", `mechedit.editors.steering.whole_object`); the prompt's end alone ("prompt"); or
            each new token ("every"): the map was fitted on the ends of prompts, and text that is steered all along
            repeats the object (`mechedit.evaluation.drift`).
        gate: "asked" (the subject is named and the relation is asked, `mechedit.editors.steering.asked_gate`), or
            near one of the edit's own prompts: "hidden" (Euclidean), "cosine" or "mahalanobis" distance of the last
            token's state, "mean" (Euclidean, of the mean state), "sentence" (a sentence encoder's embedding,
            `gate_model`), or "always".
        gate_layer: Whose input the gate reads.
        threshold: The distance within which the gate opens; of "asked", the log-odds from which it does.
        max_fpr: The share of foreign prompts that `select` lets the gate open for (None: fewest errors in all).
        doubted: The gate's centres hold the doubt forms too, over the paraphrases (never over the rewrite prompt).
        gate_model: Folder or id of the sentence gate's encoder.
        whitening: Of the Mahalanobis gate; chosen by `select`.
        relations: The space of relations of the gate "asked"; learned by `select`.
        prompts: How many paraphrases are used at the most (None: all).
        contexts: (number, tokens) of texts that the model writes itself; each paraphrase is used behind each, too.
        paraphrases: Rewrite template or relation -> other templates; None: the embedded world's and CounterFact's.
        choice: How `select` chose, for the reader.
    """

    window: Window | Literal["auto"] = "auto"
    site: SiteName = "attn_out"
    heads: int | Mapping[int, Heads] | None = None
    estimator: Literal["transport", "shift"] = "transport"
    source: Source = "plain"
    target: TargetForm | Literal["auto"] = "auto"
    all_targets: bool = False
    implicate: bool = False
    alpha: float | Literal["auto"] = "auto"
    reg: float = 1.0
    rank: int | Literal["auto"] | None = "auto"
    sequential: bool = True
    position: Position = "object"
    gate: GateKind = "asked"
    gate_layer: int | None = None
    threshold: float | None = None
    max_fpr: float | None = None
    doubted: bool = True
    gate_model: str | None = None
    whitening: Whitening | None = field(default=None, repr=False, compare=False)
    relations: RelationSpace | None = field(default=None, repr=False, compare=False)
    prompts: int | None = None
    contexts: Lengths = ()
    paraphrases: Paraphrases | None = field(default=None, repr=False)
    choice: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)
    name: str = "mega"

    def __post_init__(self) -> None:
        site_of(self.site)
        forms = (*get_args(TargetForm), "auto")
        if self.target not in forms:
            raise InputError(f"target: expected one of {', '.join(forms)}, found {self.target!r}")
        options = (("gate", GateKind), ("source", Source), ("position", Position))
        for name, known in (*options, ("estimator", Literal["transport", "shift"])):
            if getattr(self, name) not in get_args(known):
                raise InputError(
                    f"{name}: expected one of {', '.join(get_args(known))}, found {getattr(self, name)!r}"
                )
        if self.gate == "sentence" and self.gate_model is None:
            raise InputError(
                "gate_model: expected a sentence-transformers folder or id for the sentence gate, found None"
            )
        if self.prompts is not None and self.prompts < 1:
            raise InputError(f"prompts: expected at least 1 or None, found {self.prompts}")

    @contextlib.contextmanager
    def apply(self, model: HookedModel, facts: FactEdit | Sequence[FactEdit]) -> Iterator[SteeredModel]:
        """The model with the facts edited; of several edits whose gates open, the nearest steers."""
        with unsteered(model):
            edits = self.fit_all(model, as_facts(facts))
        with steer(model, edits) as steered:
            yield steered

    def fit(self, model: HookedModel, fact: FactEdit) -> SteeringEdit:
        """The edit of one fact as data: maps, gate and alpha. The model is left as it is.

        `choice` says what it found out about itself: the form of its targets, how many succeed, its own prompts' share.
        """
        edit = self.fit_all(model, [fact])[0]
        if failure := edit.failure:
            log.warning("case %s: %s", fact.case_id, failure)
        return edit

    def fit_all(self, model: HookedModel, facts: Sequence[FactEdit]) -> list[SteeringEdit]:
        """`fit` of each fact; their prompts run together."""
        first, last = self.layers(model)
        place = self.place(range(first, last + 1))
        empty = [
            SteeringEdit(
                fact,
                {},
                self._gate(model, fact),
                0.0 if self.alpha == "auto" else self.alpha,
                place.site,
                place.heads,
                self.position,
                choice=dict(self.choice),
            )
            for fact in facts
        ]
        if self.alpha == 0:  # the gate alone
            return empty
        fits = self.fits(model, facts, place)
        whole = self.position == "object" and any(one.rest for one in fits.prompts)
        goals, forms = self.goals(fits, facts, keep=whole)
        maps = fits.maps(goals, place.layers, self.make_map, sequential=self.sequential)
        among = STRENGTHS if self.alpha == "auto" else (self.alpha,)
        fitted = zip(empty, fits.prompts, maps, goals, forms, fits.strengths(maps, among), strict=True)
        edits = [
            replace(
                edit.moved(prompts.behind, own_maps, alpha),
                choice={**edit.choice, **_checked(goal, form, share)},
            )
            for edit, prompts, own_maps, goal, form, (alpha, share) in fitted
        ]
        if not whole:
            return edits
        texts = self._targets(model, facts, forms)
        return with_whole_objects(fits, edits, texts, self.make_map, strengths=among)

    def fits(self, model: HookedModel, facts: Sequence[FactEdit], place: Place) -> Fits:
        """What the fits of `facts` share, on the unedited `model`."""
        return Fits(model, [self._fit_prompts(model, fact) for fact in facts], place)

    def goals(
        self, fits: Fits, facts: Sequence[FactEdit], *, keep: bool = False
    ) -> tuple[list[Goals], list[TargetForm]]:
        """Of each fact its targets, and their form; `keep` as in `Fits.goals`."""
        best: list[TargetForm] = [self.target] * len(facts)  # type: ignore[list-item]
        if self.target == "auto":
            counts = self.successes(fits, facts)
            best = [max(counts, key=lambda form: counts[form][i]) for i in range(len(facts))]
        return fits.goals(self._targets(fits.model, facts, best), keep=keep), best

    def successes(self, fits: Fits, facts: Sequence[FactEdit]) -> dict[TargetForm, list[int]]:
        """For each form how many of the first `TRIED` targets of each fact succeed."""
        plain = [self.sources(fits.model, fact)[:TRIED] for fact in facts]
        return {
            form: fits.successes(
                [targets(fact, prompts, form) for fact, prompts in zip(facts, plain, strict=True)]
            )
            for form in get_args(TargetForm)
        }

    def place(self, layers: Iterable[int]) -> Place:
        """The site, heads and steered ones of `layers`."""
        heads = self.head_map()
        site: SiteName = "z" if heads else self.site
        return Place(site, tuple(layer for layer in layers if site != "z" or layer in heads), heads)

    def reads(self, model: HookedModel) -> dict[str, Any]:
        """What `select` has learned, texts before the paraphrases, and the weights of the gate's encoder."""
        learned = {"whitening": self.whitening, "relations": self.relations}
        read: dict[str, Any] = {key: value and fingerprint(plain(value)) for key, value in learned.items()}
        read["choice"] = {"about": plain(self.choice)}
        if self.contexts:
            read["context_texts"] = list(contexts(model, self.contexts))
        if self.gate == "sentence" and self.gate_model is not None:
            read["gate_weights"] = encoder_hash(self.gate_model)
        return read

    def select(
        self, model: HookedModel, facts: Sequence[FactEdit], *, contrast: StatementContrast | None = None
    ) -> MEGA:
        """The same editor with all that is "auto" or None chosen on `facts` (`mechedit.editors.steering.selection`).

        Args:
            model: The unedited model.
            facts: That the evaluation never sees.
            contrast: Theirs (`mechedit.anatomy.statement_contrast`), where it has been computed already.

        Raises:
            InputError: There are none, or no statement in context succeeds or none fails, so that there is nothing to
                contrast.
        """
        return select(self, model, facts, contrast=contrast)

    @property
    def needs_selection(self) -> bool:
        """Whether `select` has something left to choose."""
        unlearned = self.gate == "asked" and self.relations is None
        open_gate = self.gate != "always" and (self.threshold is None or unlearned)
        return "auto" in (self.window, self.target, self.rank) or isinstance(self.heads, int) or open_gate

    def layers(self, model: HookedModel) -> Window:
        """First and last layer that are steered.

        Raises:
            InputError: The window is outside of `model`, or "auto".
        """
        if isinstance(self.window, str):
            raise InputError(
                "window: 'auto' is chosen on facts that are not evaluated; "
                "call MEGA(window='auto').select(model, selection_facts), or give (first, last)"
            )
        first, last = self.window
        if not 0 <= first <= last < model.shape.n_layers:
            raise InputError(
                f"window: expected layers between 0 and {model.shape.n_layers - 1}, first to last, found {self.window}"
            )
        return first, last

    def head_map(self) -> dict[int, Heads]:
        """The heads that are steered, by layer; empty where the whole site is.

        Raises:
            InputError: `heads` is a number: they are not chosen yet.
        """
        if isinstance(self.heads, int):
            raise InputError(
                f"heads: {self.heads} heads are named on facts that are not evaluated; "
                "call MEGA(...).select(model, selection_facts), or give {layer: (head, ...)}"
            )
        return {layer: tuple(heads) for layer, heads in (self.heads or {}).items()}

    def sources(self, model: HookedModel, fact: FactEdit) -> list[str]:
        """The paraphrases that the edit is fitted on, the rewrite prompt first, then those behind contexts."""
        before = contexts(model, self.contexts) if self.contexts else ("",)
        return [text + prompt for text in before for prompt in self.plain_prompts(fact)]

    def plain_prompts(self, fact: FactEdit) -> list[str]:
        """The prompts that ask for the fact, the rewrite prompt first."""
        return paraphrases(fact, self.paraphrases)[: self.prompts]

    def centre_prompts(self, fact: FactEdit) -> list[str]:
        """The prompts whose states are the gate's centres."""
        plain = self.plain_prompts(fact)
        return plain + (doubts(fact, plain[1:]) if self.doubted else [])

    # -- pieces --------------------------------------------------------------------------------------------

    def gate_states(self, model: HookedModel, prompts: Sequence[str], layers: Sequence[int]) -> list[Tensor]:
        """For each layer the vectors [n, d] that this kind of gate compares; a sentence gate has one "layer"."""
        if self.gate == "sentence":
            assert self.gate_model is not None
            return [sentence_encoder(self.gate_model)(prompts).to(model.device) for _ in layers]
        read = mean_states if self.gate == "mean" else last_states
        return read(model, prompts, [resid_pre(layer) for layer in layers])

    def gate_of(
        self, centres: Tensor, *, layer: int, threshold: float, whitening: Whitening | None
    ) -> CentredGate:
        """A gate of this editor's kind."""
        if self.gate == "sentence":
            assert self.gate_model is not None
            return SentenceGate(centres, threshold, self.gate_model, sentence_encoder(self.gate_model))
        distance = _DISTANCE.get(self.gate, "euclidean")
        pool: Literal["mean", "last"] = "mean" if self.gate == "mean" else "last"
        return HiddenGate(layer, centres, threshold, distance, pool, whitening)

    def _gate(self, model: HookedModel, fact: FactEdit) -> Gate:
        if self.gate == "always":
            return AlwaysOn()
        if self.gate == "asked":
            return self._asked_gate(model, fact)
        if self.threshold is None or (self.gate_layer is None and self.gate != "sentence"):
            raise InputError(
                f"threshold: expected one, and a gate_layer, for the {self.gate} gate, found None; "
                "call MEGA(...).select(model, selection_facts) first, or take gate='always'"
            )
        layer = self.gate_layer or 0
        (centres,) = self.gate_states(model, self.centre_prompts(fact), [layer])
        return self.gate_of(centres, layer=layer, threshold=self.threshold, whitening=self.whitening)

    def _asked_gate(self, model: HookedModel, fact: FactEdit) -> AskedGate:
        if self.threshold is None or self.relations is None:
            raise InputError(
                "relations: expected what select() learns of them, found None; "
                "call MEGA(...).select(model, selection_facts) first, or take gate='always'; "
                "a threshold and a gate_layer of your own belong to gate='hidden'"
            )
        (states,) = last_states(model, self.plain_prompts(fact), [resid_pre(self.relations.layer)])
        objects = [
            text
            for value in (fact.target_new, fact.target_true)
            for text in (f" {value.strip()}", value.strip())
        ]
        encoded = (model.tokenizer(text, add_special_tokens=False).input_ids for text in objects)
        return AskedGate(
            names=(fact.subject, *fact.aliases),
            centres=self.relations.coordinates(states),
            threshold=self.threshold,
            own=own_relations(fact) or (fact.prompt,),
            objects=tuple(dict.fromkeys(tuple(ids) for ids in encoded)),
            space=self.relations,
        )

    def _targets(
        self, model: HookedModel, facts: Sequence[FactEdit], forms: Sequence[TargetForm]
    ) -> list[list[str]]:
        """Of each fact the target prompts, in a form of its own."""
        pairs = zip(facts, forms, strict=True)
        return [targets(fact, self.sources(model, fact), form) for fact, form in pairs]

    def _fit_prompts(self, model: HookedModel, fact: FactEdit) -> FitPrompts:
        plain = self.sources(model, fact)
        implied = implications(fact, self.paraphrases) if self.implicate else []
        new, old = (
            model.continuation(fact.rewrite_prompt, value, space=fact.space)[1]
            for value in (fact.target_new, fact.target_true)
        )
        decided = decide(model.tokenizer, new.tolist(), old.tolist())
        place = min(decided.shared, len(new) - 1) if self.position == "object" else 0
        if decided.begins_old if self.position == "object" else not decided.one_token:
            log.warning(
                "case %s: %r and %r begin alike (or with a bare space), and the fit looks at one token, which does not "
                "tell them apart: it cannot tell whether it succeeds",
                fact.case_id,
                fact.target_new,
                fact.target_true,
            )
        return FitPrompts(
            own=self.plain_prompts(fact),
            source=sources(fact, plain, self.source),
            implied=implication_pairs(fact, implied),
            new=int(new[place]),
            old=int(old[place]) if place < len(old) else -1,
            every=self.all_targets,
            behind=decided.new[:place],
            whole=tuple(new.tolist()),
        )

    def make_map(self, source: Tensor, target: Tensor, n_implied: int) -> AffineMap:
        """The map of one layer, from source to target states [n, d]; the last `n_implied` of both are implications."""
        if n_implied:
            (source, implied), (target, goal) = (
                states.split([len(states) - n_implied, n_implied]) for states in (source, target)
            )
            dice = torch.Generator().manual_seed(0)
            implied, goal = align_implications(target.mean(0) - source.mean(0), implied, goal, generator=dice)
            source, target = torch.cat([source, implied]), torch.cat([target, goal])
        if self.estimator == "shift" or self.rank == 0:
            return mean_shift(source, target)
        return gaussian_map(source, target, reg=self.reg, rank=None if self.rank == "auto" else self.rank)


def _checked(goals: Goals, form: TargetForm, share: float) -> dict[str, Any]:
    """What an edit says of itself."""
    return {"target": form, "targets_right": [goals.succeeded, goals.total], "own_right": share}
