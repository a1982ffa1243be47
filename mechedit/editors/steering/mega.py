"""MEGA: steer the attention outputs of the layers that attribution names; change no weight.

Source: "The Anatomy of an Edit" (arXiv 2603.20795) for the idea: an intervention on the attention residual in
attribution-aligned layers. The paper's details are not public; the map is the one of SAKE (arXiv 2503.01751), which it
is said to build on. Steps, for one fact:

1. *Prompts*: paraphrases p_j of the rewrite prompt are the source; the target is the same question after a statement of
   the new fact, `Do not mention 'OLD'. Repeat this sentence: 'p_j NEW'. p_j` (`mechedit.editors.steering.fit_prompts`).
2. *Map*: at each layer of the window, a Gaussian map from the source's attention outputs at the last token to the
   target's, in the span of the prompts (`mechedit.editors.steering.transport`). Fitted in order, with the earlier
   layers' maps active, so that each map starts from the states it will really meet.
3. *Gate*: opens where the prompt's state below the window is near one of the edit's own prompts
   (`mechedit.editors.steering.gates`).
4. *Steer*: `a' = a + α · P (M z + c)` (`mechedit.editors.steering.steer`).

Window, alpha, rank, heads, gate layer and threshold are chosen on facts that are never evaluated, by
`MEGA().select(model, facts)` (`mechedit.editors.steering.selection`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from mechedit.data.facts import FactEdit
from mechedit.editors.base import as_facts
from mechedit.editors.contexts import Lengths, contexts
from mechedit.editors.steering.fit_prompts import (
    Source,
    align_implications,
    doubts,
    implication_pairs,
    source_and_target,
)
from mechedit.editors.steering.gates import (
    AlwaysOn,
    CentredGate,
    Distance,
    Gate,
    HiddenGate,
    SentenceGate,
    Whitening,
)
from mechedit.editors.steering.paraphrases import Paraphrases, implications, paraphrases
from mechedit.editors.steering.selection import select
from mechedit.editors.steering.sentence_encoder import sentence_encoder
from mechedit.editors.steering.sites import Heads, SiteName, part, read_site, site_of
from mechedit.editors.steering.steer import Position, SteeredModel, SteeringEdit, steer, unsteered
from mechedit.editors.steering.transport import AffineMap, gaussian_map, mean_shift
from mechedit.models.hooked import HookedModel
from mechedit.models.hooking import resid_pre
from mechedit.models.states import last_states, mean_states
from reports.errors import InputError

__all__ = ["MEGA", "GateKind"]

Window = tuple[int, int]
GateKind = Literal["hidden", "cosine", "mahalanobis", "mean", "sentence", "always"]
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
        implicate: Fit implication prompts too (`mechedit.editors.steering.paraphrases.implications`).
        alpha: How far along the map; 0 steers nothing (the gate alone), above 1 goes past the target, "auto": to be
            chosen by `select`.
        reg: Regularisation of both covariances, in squared units of the state; the larger, the nearer the transport
            comes to the mean shift.
        rank: Principal directions that the map may use (None: all; "auto": what `select` chooses, else all).
        sequential: Fit each layer with the earlier layers' maps active.
        position: Steer the prompt's end alone ("prompt"), or each new token too ("every"): the map was fitted on the
            ends of prompts, and text that is steered all along repeats the object (`mechedit.evaluation.drift`).
        gate: "hidden" (Euclidean), "cosine" or "mahalanobis" distance of the last token's state, "mean" (Euclidean, of
            the mean state), "sentence" (a sentence encoder's embedding, `gate_model`), or "always".
        gate_layer: Whose input the gate reads.
        threshold: The distance within which the gate opens.
        max_fpr: The share of foreign prompts that `select` lets the gate open for (None: fewest errors in all).
        doubted: The gate's centres hold the doubt forms too, over the paraphrases (never over the rewrite prompt).
        gate_model: Folder or id of the sentence gate's encoder.
        whitening: Of the Mahalanobis gate; chosen by `select`.
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
    implicate: bool = False
    alpha: float | Literal["auto"] = "auto"
    reg: float = 1.0
    rank: int | Literal["auto"] | None = "auto"
    sequential: bool = True
    position: Position = "prompt"
    gate: GateKind = "hidden"
    gate_layer: int | None = None
    threshold: float | None = None
    max_fpr: float | None = None
    doubted: bool = True
    gate_model: str | None = None
    whitening: Whitening | None = field(default=None, repr=False, compare=False)
    prompts: int | None = None
    contexts: Lengths = ()
    paraphrases: Paraphrases | None = field(default=None, repr=False)
    choice: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)
    name: str = "mega"

    def __post_init__(self) -> None:
        site_of(self.site)
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
            edits = [self.fit(model, fact) for fact in as_facts(facts)]
        with steer(model, edits) as steered:
            yield steered

    def fit(self, model: HookedModel, fact: FactEdit) -> SteeringEdit:
        """The edit of one fact as data: maps, gate and alpha. The model is left as it is."""
        first, last = self.layers(model)
        alpha, heads = self._alpha(), self.head_map()
        site: SiteName = "z" if heads else self.site
        edit = SteeringEdit(
            fact, {}, self._gate(model, fact), alpha, site, heads, self.position, choice=dict(self.choice)
        )
        if alpha == 0:  # the gate alone
            return edit
        layers = [layer for layer in range(first, last + 1) if site != "z" or layer in heads]
        return _Fitting(self, model, edit, layers).edit()

    def select(self, model: HookedModel, facts: Sequence[FactEdit]) -> MEGA:
        """The same editor with all that is "auto" or None chosen on `facts` (`mechedit.editors.steering.selection`).

        Use facts that the evaluation never sees.

        Raises:
            InputError: There are none, or no statement in context succeeds or none fails, so that there is nothing to
                contrast.
        """
        return select(self, model, facts)

    @property
    def needs_selection(self) -> bool:
        """Whether `select` has something left to choose."""
        open_gate = self.gate != "always" and self.threshold is None
        return "auto" in (self.window, self.alpha) or isinstance(self.heads, int) or open_gate

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
        return [text + prompt for text in before for prompt in self._plain(fact)]

    def _plain(self, fact: FactEdit) -> list[str]:
        return paraphrases(fact, self.paraphrases)[: self.prompts]

    def centre_prompts(self, fact: FactEdit) -> list[str]:
        """The prompts whose states are the gate's centres."""
        plain = self._plain(fact)
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
        if self.threshold is None or (self.gate_layer is None and self.gate != "sentence"):
            raise InputError(
                f"threshold: expected one, and a gate_layer, for the {self.gate} gate, found None; "
                "call MEGA(...).select(model, selection_facts) first, or take gate='always'"
            )
        layer = self.gate_layer or 0
        (centres,) = self.gate_states(model, self.centre_prompts(fact), [layer])
        return self.gate_of(centres, layer=layer, threshold=self.threshold, whitening=self.whitening)

    def _alpha(self) -> float:
        if isinstance(self.alpha, str):
            raise InputError(
                "alpha: 'auto' is chosen on facts that are not evaluated; "
                "call MEGA(...).select(model, selection_facts), or give a number (1.0 ends at the map's target)"
            )
        return self.alpha


@dataclass(frozen=True)
class _Fitting:
    """The maps of one edit: states at the sites, one layer after the other."""

    editor: MEGA
    model: HookedModel
    empty: SteeringEdit
    layers: Sequence[int]

    def edit(self) -> SteeringEdit:
        """The edit with a map for each layer."""
        prompts = self.editor.sources(self.model, self.empty.fact)
        source, target = source_and_target(self.empty.fact, prompts, self.editor.source)
        implied, implied_target = self._implications()
        goals = self._states(self.model, target + implied_target, self.layers)
        maps: dict[int, AffineMap] = {}
        for layer, goal in zip(self.layers, goals, strict=True):
            earlier = maps if self.editor.sequential else {}
            open_edit = replace(self.empty, maps=earlier, gate=AlwaysOn())
            with steer(self.model, [open_edit]) as steered:
                (start,) = self._states(steered, source + implied, [layer])
            maps = {**maps, layer: self._map(start, goal, len(source), len(target))}
        return replace(self.empty, maps=maps)

    def _implications(self) -> tuple[list[str], list[str]]:
        if not self.editor.implicate:
            return [], []
        return implication_pairs(self.empty.fact, implications(self.empty.fact, self.editor.paraphrases))

    def _states(self, model: HookedModel, prompts: Sequence[str], layers: Sequence[int]) -> list[Tensor]:
        read = last_states(model, prompts, [read_site(layer, self.empty.site) for layer in layers])
        return [
            part(states, self.empty.heads[layer] if self.empty.site == "z" else None)
            for layer, states in zip(layers, read, strict=True)
        ]

    def _map(self, start: Tensor, goal: Tensor, n_source: int, n_target: int) -> AffineMap:
        source, implied = start[:n_source], start[n_source:]
        target, implied_goal = goal[:n_target], goal[n_target:]
        if len(implied):
            dice = torch.Generator().manual_seed(0)
            mean = target.mean(0) - source.mean(0)
            implied, implied_goal = align_implications(mean, implied, implied_goal, generator=dice)
            source, target = torch.cat([source, implied]), torch.cat([target, implied_goal])
        if self.editor.estimator == "shift":
            return mean_shift(source, target)
        rank = self.editor.rank
        return gaussian_map(source, target, reg=self.editor.reg, rank=None if rank == "auto" else rank)
