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

from mechedit.editors.steering.fit import FitPrompts, Fits, MapMaker
from mechedit.editors.steering.steering_edit import Following, SteeringEdit
from mechedit.models.scoring import score_pairs

__all__ = ["with_whole_objects"]


def with_whole_objects(
    fits: Fits,
    edits: Sequence[SteeringEdit],
    targets: Sequence[Sequence[str]],
    make: MapMaker,
    *,
    strengths: Sequence[float],
) -> list[SteeringEdit]:
    """The edits, each with maps for the tokens of its object that need them.

    Args:
        fits: By which the edits were fitted for one token each; its goals were kept.
        edits: In the order of its facts.
        targets: The target prompts of each.
        make: Fits one map.
        strengths: How far a map may go.
    """
    prompts = fits.prompts
    shares = [_shares(fits, i, edits[i]) if prompts[i].rest else [] for i in range(len(edits))]
    tokens = [range(len(one.whole) - one.rest, len(one.whole)) for one in prompts]
    entries = [(i, j) for i, later in enumerate(tokens) for j in later if shares[i][j] < 1.0]
    done = list(edits)
    if entries:
        asked = [_continued(prompts[i], j) for i, j in entries]
        further = Fits(fits.model, asked, fits.place, before=(fits, [i for i, _ in entries]))
        goals = further.goals([targets[i] for i, _ in entries])
        maps = further.maps(goals, fits.place.layers, make)
        found = zip(entries, maps, further.strengths(maps, strengths), strict=True)
        for (i, j), fitted, (alpha, _) in found:
            following = Following(prompts[i].whole[:j], fitted, alpha)
            done[i] = replace(done[i], following=(*done[i].following, following))
    for i in sorted({i for i, _ in entries}):
        shares[i] = _shares(fits, i, done[i])
    return [
        replace(edit, choice={**edit.choice, "object_right": mine[-1]}) if mine else edit
        for edit, mine in zip(done, shares, strict=True)
    ]


def _shares(fits: Fits, fact: int, edit: SteeringEdit) -> list[float]:
    """Of each token the share of own prompts behind which it is said, its gate open; last, of the whole object."""
    one, model = fits.prompts[fact], fits.model
    steps = {len(tokens): (move.maps, move.alpha) for tokens, move in edit.moves.items()}
    hits = fits.spoken(fact, steps) == torch.tensor(one.whole[len(one.behind) :])
    if one.behind:  # what it says by itself
        begun = torch.tensor(one.behind, device=model.device)
        scores = score_pairs(model, [(prompt, begun) for prompt in model.encode(one.own)])
        hits = torch.cat([torch.stack([scored.hits for scored in scores]).cpu(), hits], dim=1)
    return [*hits.double().mean(0).tolist(), float(hits.double().prod(1).mean())]


def _continued(prompts: FitPrompts, j: int) -> FitPrompts:
    """The fit of token j of an object."""
    whole = prompts.whole
    return replace(prompts, behind=whole[:j], new=whole[j], old=-1, implied=([], []))
