"""MEGA's controls and ablations: the same edit with one thing changed.

Each is named, and each is made of an editor whose window, alpha and gate have been chosen already, so that what is
compared is the one thing alone. The random window has as many layers, none of them in MEGA's own where that is
possible: the run that shares the fewest, by chance among equals.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from mechedit.editors.steering.mega import MEGA
from mechedit.editors.steering.relation_words import RelationWords
from reports.errors import InputError

__all__ = ["ABLATIONS", "CONTROLS", "variant"]

_Make = Callable[[MEGA, int, int], MEGA]


def _changed(**settings: Any) -> _Make:
    return lambda mega, n_layers, seed: replace(mega, **settings)


def _with_window(choose: Callable[[int, int, int, int], tuple[int, int]]) -> _Make:
    def make(mega: MEGA, n_layers: int, seed: int) -> MEGA:
        assert isinstance(mega.window, tuple)
        window = choose(*mega.window, n_layers, seed)
        # The gate stays where it was chosen: below the window, or with a look ahead.
        return replace(mega, window=window)

    return make


def _random_window(first: int, last: int, n_layers: int, seed: int) -> tuple[int, int]:
    size = last - first + 1
    places = [(a, a + size - 1) for a in range(n_layers - size + 1)]
    shared = {place: max(0, min(place[1], last) - max(place[0], first) + 1) for place in places}
    apart = [place for place in places if shared[place] == min(shared.values())]
    return random.Random(f"{seed}:random_window").choice(apart)


def _without_words(mega: MEGA, n_layers: int, seed: int) -> MEGA:
    if mega.relations is None:
        raise InputError("variant: gate_states is made of a MEGA whose gate is 'asked', found another one")
    return replace(mega, relations=replace(mega.relations, words=RelationWords({})))


#: What every table shows beside MEGA: label and what is changed.
CONTROLS: Mapping[str, tuple[str, _Make]] = {
    "mega_ungated": ("MEGA, gate always open", _changed(gate="always")),
    "mean_shift": ("Mean shift, same layers and gate", _changed(estimator="shift")),
    "gate_only": ("Gate alone (nothing is steered)", _changed(alpha=0.0)),
    "random_window": ("Random layers, as many", _with_window(_random_window)),
    "early_window": ("First layers, as many", _with_window(lambda a, b, n, seed: (0, b - a))),
}
#: One choice at a time, for the comparison's second table.
ABLATIONS: Mapping[str, tuple[str, _Make]] = {
    "late_window": ("Last layers, as many", _with_window(lambda a, b, n, seed: (n - 1 - (b - a), n - 1))),
    "all_layers": ("All layers", _with_window(lambda a, b, n, seed: (0, n - 1))),
    "one_layer": ("The window's last layer alone", _with_window(lambda a, b, n, seed: (b, b))),
    "site_resid_mid": ("Site: residual stream behind the attention", _changed(site="resid_mid")),
    "site_mlp_out": ("Site: MLP output", _changed(site="mlp_out")),
    "site_resid_post": ("Site: residual stream behind the layer", _changed(site="resid_post")),
    "target_avoid": ("Targets: SAKE's form", _changed(target="avoid")),
    "target_statement": ("Targets: the bare statement", _changed(target="statement")),
    "all_targets": ("All targets and sources, those that fail too", _changed(all_targets=True)),
    "alpha_1": ("Alpha 1, whatever the edit's own prompts say", _changed(alpha=1.0)),
    "rank_1": ("Rank 1", _changed(rank=1)),
    "rank_4": ("Rank 4", _changed(rank=4)),
    "rank_all": ("All directions", _changed(rank=None)),
    "alpha_half": ("Alpha 0.5", _changed(alpha=0.5)),
    "alpha_2": ("Alpha 2", _changed(alpha=2.0)),
    "reg_small": ("Regularisation 0.001", _changed(reg=1e-3)),
    "prompts_1": ("1 prompt", _changed(prompts=1)),
    "prompts_2": ("2 prompts", _changed(prompts=2)),
    "prompts_50": ("Up to 50 prompts, with the model's own contexts", _changed(contexts=((9, 8),))),
    "prompts_100": ("Up to 100 prompts, with the model's own contexts", _changed(contexts=((19, 8),))),
    "source_forced": ("Forced source", _changed(source="forced")),
    "source_both": ("Plain and forced source", _changed(source="both")),
    "independent": ("Layers fitted on the clean model", _changed(sequential=False)),
    "prompt_end": ("The prompt's end alone steered", _changed(position="prompt")),
    "every_token": ("Every new token steered", _changed(position="every")),
    "undoubted_gate": (
        "Gate without the doubt forms",
        _changed(doubted=False, threshold=None, gate_layer=None),
    ),
    "gate_subject": ("Gate: the subject is named, whatever is asked", _changed(threshold=-1e9)),
    "gate_states": ("Gate: states alone, no words", _without_words),
    "gate_hidden": ("Gate: Euclidean distance", _changed(gate="hidden", threshold=None, gate_layer=None)),
    "gate_cosine": ("Gate: cosine", _changed(gate="cosine", threshold=None, gate_layer=None)),
    "gate_mahalanobis": ("Gate: Mahalanobis", _changed(gate="mahalanobis", threshold=None, gate_layer=None)),
    "gate_mean": ("Gate: mean hidden state", _changed(gate="mean", threshold=None, gate_layer=None)),
    "heads_6": ("The 6 heads that the attribution names", _changed(heads=6, alpha="auto")),
}


def variant(mega: MEGA, name: str, *, n_layers: int, seed: int = 0) -> MEGA:
    """The control or ablation called `name` of an editor whose settings are chosen.

    What a variant leaves open again (a gate of another kind, heads) is chosen by its `select`.

    Args:
        mega: The editor.
        name: A key of `CONTROLS` or `ABLATIONS`.
        n_layers: The model's.
        seed: Of a random window.

    Raises:
        InputError: An unknown name.

    >>> variant(MEGA(window=(5, 7), alpha=1.0), "early_window", n_layers=8).window
    (0, 2)
    """
    known = {**CONTROLS, **ABLATIONS}
    if name not in known:
        raise InputError(f"variant: expected one of {', '.join(known)}, found {name!r}")
    return replace(known[name][1](mega, n_layers, seed), name=name)
