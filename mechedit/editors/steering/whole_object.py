"""Objects of several tokens: maps behind the first tokens of the object, where the model does not go on by itself.

A map at a prompt's end gives the token there. What follows is the model's own: behind " Tall" it may go on to
"ahassee" where "inn" is wanted. Steps, for each edit whose object goes on behind the token that it is fitted for:

1. the steered model reads the edit's own prompts with the object behind them; tokens that it says itself behind all of
   them need nothing;
2. for every other token o_j a fit of its own (`mechedit.editors.steering.fit`): source and target prompts with
   o_<j behind them, a target succeeds where the model says o_j;
3. the share of own prompts behind which the edited model says the whole object is kept with the edit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from mechedit.editors.steering.fit import FitPrompts, Fits, MapMaker, Place
from mechedit.editors.steering.gates import AlwaysOn
from mechedit.editors.steering.steer import steer
from mechedit.editors.steering.steering_edit import Following, SteeringEdit
from mechedit.models.hooked import HookedModel
from mechedit.models.scoring import score_pairs

__all__ = ["with_whole_objects"]


def with_whole_objects(
    model: HookedModel,
    edits: Sequence[SteeringEdit],
    prompts: Sequence[FitPrompts],
    targets: Sequence[Sequence[str]],
    place: Place,
    make: MapMaker,
    *,
    strengths: Sequence[float],
) -> list[SteeringEdit]:
    """The edits, each with maps for the tokens of its object that need them.

    Args:
        model: The unedited model.
        edits: Fitted for one token each.
        prompts: What each is fitted on.
        targets: The target prompts of each.
        place: Where they steer.
        make: Fits one map.
        strengths: How far a map may go.
    """
    objects = [_object(model, edit) for edit in edits]
    rest = [range(len(one.behind) + 1, len(ids)) for one, ids in zip(prompts, objects, strict=True)]
    shares = [_shares(model, edits[i], prompts[i], objects[i]) if rest[i] else [] for i in range(len(edits))]
    entries = [(i, j) for i, tokens in enumerate(rest) for j in tokens if shares[i][j] < 1.0]
    done = list(edits)
    if entries:
        asked = [_continued(prompts[i], objects[i], j) for i, j in entries]
        fits = Fits(model, asked, place)
        goals = fits.goals([targets[i] for i, _ in entries])
        maps = fits.maps(goals, place.layers, make)
        found = zip(entries, maps, fits.strengths(maps, strengths), strict=True)
        for (i, j), fitted, (alpha, _) in found:
            following = Following(objects[i][:j], fitted, alpha)
            done[i] = replace(done[i], following=(*done[i].following, following))
    for i in sorted({i for i, _ in entries}):
        shares[i] = _shares(model, done[i], prompts[i], objects[i])
    return [
        replace(edit, choice={**edit.choice, "object_right": mine[-1]}) if mine else edit
        for edit, mine in zip(done, shares, strict=True)
    ]


def _object(model: HookedModel, edit: SteeringEdit) -> tuple[int, ...]:
    fact = edit.fact
    ids = model.continuation(fact.rewrite_prompt, fact.target_new, space=fact.space)[1]
    return tuple(int(token) for token in ids)


def _shares(
    model: HookedModel, edit: SteeringEdit, prompts: FitPrompts, tokens: tuple[int, ...]
) -> list[float]:
    """Of each token the share of own prompts behind which it is said, its gate open; last, of the whole object."""
    ids = torch.tensor(tokens, device=model.device)
    with steer(model, [replace(edit, gate=AlwaysOn())]) as steered:
        scores = score_pairs(steered, [(prompt, ids) for prompt in model.encode(prompts.own)])
    hits = torch.stack([scored.hits for scored in scores]).double()
    return [*hits.mean(0).tolist(), float(hits.prod(1).mean())]


def _continued(prompts: FitPrompts, tokens: tuple[int, ...], j: int) -> FitPrompts:
    """The fit of token j of an object."""
    return replace(prompts, behind=tokens[:j], new=tokens[j], old=-1, implied=([], []))
