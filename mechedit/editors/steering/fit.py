"""Fits the maps of steering edits in two passes, whatever the number of layers, and finds how far each has to go.

1. *Targets* run once: at every steered layer the state at the last token, and whether the model says the new object
   behind the prompt. A target behind which it does not is no target and is left out; where none succeeds the one that
   comes nearest is taken.
2. *Sources* run once, up to their last tokens (`mechedit.models.ends`); these then run through the layers while the
   maps are fitted: at each steered layer the map from the states that arrive there to the target's, which acts at
   once. So each map starts from the states it will really meet. Sources behind which the model says the old object are
   preferred, where there are enough of them.
3. *Strength*: the smallest of `STRENGTHS` with which the edit's own prompts give the new object most often; of these
   too only those that recall the old object, where there are enough. The maps stay as they are, and only the last
   tokens run again.

Facts are fitted together: what their prompts share is one pass, and what candidates of a selection share is kept.

Nothing is fitted on, or checked by, a prompt that the evaluation asks.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from experiments.progress import LONG, bar
from mechedit.editors.steering.sites import SITES, Heads, SiteName, part
from mechedit.editors.steering.transport import AffineMap
from mechedit.models.ends import EndBatch, PromptEnds
from mechedit.models.hooked import HookedModel
from mechedit.models.hooking import Hook, in_block

__all__ = ["STRENGTHS", "FitPrompts", "Fits", "Goals", "MapMaker", "Maps", "Place", "steered_logits"]

#: How far an edit may go along its maps: 1 ends at the targets' states, whose mean falls short of any one of them.
STRENGTHS = (1.0, 1.5, 2.0, 3.0)
ENOUGH = 3  # prompts behind which the model says the old object: with fewer, all are used
TOGETHER = 128  # source prompts of one batch

Maps = Mapping[int, AffineMap]
#: From source and target states [n, d] to a map; the last `n_implied` rows of both belong to implication prompts.
MapMaker = Callable[[Tensor, Tensor, int], AffineMap]
Move = Callable[[int, Tensor], Sequence[tuple[Tensor, Tensor]]]


@dataclass(frozen=True)
class Place:
    """Where edits steer.

    Attributes:
        site: The name of the site (`mechedit.editors.steering.sites`).
        layers: The steered layers, in order.
        heads: For the site "z", the heads of each layer.
    """

    site: SiteName
    layers: tuple[int, ...]
    heads: Mapping[int, Heads]

    def part(self, layer: int, states: Tensor) -> Tensor:
        """What a map acts on, of states [B, ...] at the site."""
        return part(states, self.heads[layer] if self.site == "z" else None)


@dataclass(frozen=True)
class FitPrompts:
    """The prompts of one fact's fit.

    Attributes:
        own: Prompts that ask for the fact: what the edit checks itself on.
        source: What the maps start from.
        implied: Source and target of each implication prompt.
        new: The token that the edit is to say: the new object's first that the old one has not.
        old: The old object's token in its place; −1 for none.
        every: All prompts count, those too behind which the model does not say the object.
        behind: Ids that stand behind every prompt: the beginning of the new object.
        whole: The ids of the whole new object.
    """

    own: Sequence[str]
    source: Sequence[str]
    implied: tuple[Sequence[str], Sequence[str]]
    new: int
    old: int
    every: bool = False
    behind: tuple[int, ...] = ()
    whole: tuple[int, ...] = ()

    @property
    def rest(self) -> int:
        """How many tokens the new object has behind the one that is fitted."""
        return max(0, len(self.whole) - len(self.behind) - 1)

    def ids(self, model: HookedModel, texts: Sequence[str]) -> list[Tensor]:
        """The ids of prompts, with what stands behind them."""
        tail = torch.tensor(self.behind, dtype=torch.long, device=model.device)
        return [torch.cat([ids, tail.to(ids)]) for ids in model.encode(texts)] if len(texts) else []


@dataclass(frozen=True)
class Goals:
    """The targets of one fact: at each layer the states of those that count [n, d]; how many succeed, of how many."""

    states: Mapping[int, Tensor]
    succeeded: int
    total: int


class Fits:
    """The fits of several facts on one model.

    Args:
        model: The unedited model.
        prompts: Of each fact.
        place: The site, its heads, and every layer that a candidate may steer.
        before: Fits of these facts and others for earlier tokens, whose `goals` were kept, and which of its facts each
            of these is: what it has run does not run again.
    """

    @torch.no_grad()
    def __init__(
        self,
        model: HookedModel,
        prompts: Sequence[FitPrompts],
        place: Place,
        *,
        before: tuple[Fits, Sequence[int]] | None = None,
    ) -> None:
        self.model, self.prompts, self.place = model, prompts, place
        self._before = before
        self._ends: dict[str, PromptEnds] = {}
        self._places: dict[str, list[range]] = {}  # of each fact's prompts among the ends
        sources = [[*one.source, *one.implied[0]] for one in prompts]
        self._read("source", sources)
        own = [one.own for one in prompts]
        # Mostly the prompts that an edit checks itself on are its sources: then they run once.
        same = all([*texts] == source for texts, source in zip(own, sources, strict=True))
        if same:
            self._ends["own"], self._places["own"] = self._ends["source"], self._places["source"]
        else:
            self._read("own", own)
        self._fitted: tuple[Sequence[Maps], Tensor] = ((), torch.tensor([]))
        self._owner = [i for i, texts in enumerate(own) for _ in texts]
        said = self._ends["source"].logits().argmax(-1).cpu()
        pairs = list(zip(prompts, self._places["source"], strict=True))
        plain = self._recalling(said, [place[: len(one.source)] for one, place in pairs])
        implied = [torch.arange(place.start + len(one.source), place.stop) for one, place in pairs]
        self._rows = [torch.cat(rows) for rows in zip(plain, implied, strict=True)]
        if not same:
            said = self._ends["own"].logits().argmax(-1).cpu()
        self._asks = self._recalling(said, self._places["own"])

    def _read(self, name: str, texts: Sequence[Sequence[str]]) -> None:
        """Reads each fact's texts up to their ends, those of one fact in one batch, and keeps them under a name."""
        self._places[name] = _ranges([len(mine) for mine in texts])
        if self._before is None:
            groups = _groups([len(mine) for mine in texts])
            self._ends[name] = PromptEnds(self.model, self._ids(texts), groups=groups)
        else:
            fits, facts = self._before
            rows: list[int] = []
            tails: list[tuple[int, ...]] = []
            for fact, one, mine in zip(facts, self.prompts, texts, strict=True):
                rows += fits._places[name][fact][: len(mine)]
                tails += [one.behind[len(fits.prompts[fact].behind) :]] * len(mine)
            self._ends[name] = fits._ends[name].continued(rows, tails)

    def _ids(self, texts: Sequence[Sequence[str]]) -> list[Tensor]:
        """The ids of each fact's texts, one after the other."""
        pairs = zip(self.prompts, texts, strict=True)
        return [ids for one, mine in pairs for ids in one.ids(self.model, mine)]

    def _recalling(self, said: Tensor, places: Sequence[range]) -> list[Tensor]:
        """Of each fact those of its places behind which the model says the old object; where too few are, all.

        Args:
            said: The model's next token behind each text of all facts [n].
            places: Of each fact the texts that may count.
        """
        found = []
        for one, place in zip(self.prompts, places, strict=True):
            plain = torch.arange(place.start, place.stop)
            recalled = plain[said[plain] == one.old]
            found.append(recalled if len(recalled) >= ENOUGH and not one.every else plain)
        return found

    @torch.no_grad()
    def goals(self, targets: Sequence[Sequence[str]], *, keep: bool = False) -> list[Goals]:
        """Step 1: of each fact, what its target prompts lead to.

        Args:
            targets: Of each fact the questions, each behind a statement of the new object.
            keep: Fits of later tokens are to start from them.
        """
        texts = [[*mine, *one.implied[1]] for mine, one in zip(targets, self.prompts, strict=True)]
        kept: dict[int, list[Tensor]] = {layer: [] for layer in self.place.layers}
        hooks = _hooks(self.place, partial(_keep, kept))
        if keep or self._before is not None:
            self._read("target", texts)
            ends = self._ends["target"]
            logits = ends.logits(lambda batch: hooks)
            order = torch.tensor([row for batch in ends.batches for row in batch.rows]).argsort()
            order = order.to(logits.device)
        else:
            logits, order = self._once(texts, hooks)
        states = {layer: torch.cat(parts)[order] for layer, parts in kept.items()}
        found, start = [], 0
        for mine, one in zip(targets, self.prompts, strict=True):
            stop = start + len(mine)
            chosen, succeeded = _chosen(logits[start:stop], one.new, every=one.every)
            end = stop + len(one.implied[1])
            picked = torch.cat([start + chosen, torch.arange(stop, end, device=chosen.device)])
            found.append(Goals({layer: rows[picked] for layer, rows in states.items()}, succeeded, len(mine)))
            start = end
        return found

    def successes(self, targets: Sequence[Sequence[str]]) -> list[int]:
        """Of each fact, behind how many of its target prompts the model says the new object."""
        said = iter(self._once(targets)[0].argmax(-1).tolist())
        return [
            sum(next(said) == one.new for _ in mine) for mine, one in zip(targets, self.prompts, strict=True)
        ]

    @torch.no_grad()
    def _once(self, texts: Sequence[Sequence[str]], hooks: Sequence[Hook] = ()) -> tuple[Tensor, Tensor]:
        """One pass of prompts that are read once: the logits behind them, and where in the passes each has run."""
        ids = self._ids(texts)
        parts, rows = [], []
        with bar("prompts", len(ids), unit="prompt", delay=LONG) as shown, self.model.hooks(list(hooks)):
            for batch, logits in self.model.logits_by_batch(ids, batch_size=TOGETHER):
                parts.append(logits)
                rows += batch
                shown.update(len(batch))
        order = torch.tensor(rows).argsort().to(parts[0].device)
        return torch.cat(parts)[order], order

    @torch.no_grad()
    def maps(
        self, goals: Sequence[Goals], layers: Sequence[int], make: MapMaker, *, sequential: bool = True
    ) -> list[dict[int, AffineMap]]:
        """Step 2: of each fact its maps by layer.

        Args:
            goals: Of each fact.
            layers: The steered ones.
            make: Fits one map.
            sequential: Earlier layers' maps act while the later ones are fitted.
        """
        fitted: list[dict[int, AffineMap]] = [{} for _ in self.prompts]

        def hooks(batch: EndBatch) -> list[Hook]:
            where = {row: i for i, row in enumerate(batch.rows)}
            inside = [
                (n, torch.tensor([where[int(row)] for row in rows], device=batch.last.device))
                for n, rows in enumerate(self._rows)
                if int(rows[0]) in where
            ]

            def move(layer: int, h: Tensor) -> list[tuple[Tensor, Tensor]]:
                moved = []
                for n, rows in inside:
                    implied = len(self.prompts[n].implied[0])
                    made = make(h[rows], goals[n].states[layer], implied).to(h.device, h.dtype)
                    fitted[n][layer] = made
                    if sequential:
                        moved.append((rows, made.displacement(h[rows])))
                return moved

            return _hooks(self._at(layers), move)

        said = self._ends["source"].logits(hooks).argmax(-1).cpu()
        same = self._ends["own"] is self._ends["source"]
        self._fitted = (fitted, said) if sequential and same else ((), said)
        return fitted

    def strengths(self, maps: Sequence[Maps], among: Sequence[float]) -> list[tuple[float, float]]:
        """Step 3: of each fact the strength that it needs, and the share of its own prompts that it gets right."""
        best = [(among[0], -1.0)] * len(maps)
        waiting = list(range(len(maps)))
        tokens = torch.tensor([self.prompts[n].new for n in self._owner])
        for alpha in among:
            said = self._said(maps, [alpha if n in waiting else 0.0 for n in range(len(maps))]) == tokens
            for n in tuple(waiting):
                share = float(said[self._asks[n]].double().mean())
                if share > best[n][1]:
                    best[n] = alpha, share
                if share == 1.0:
                    waiting.remove(n)
            if not waiting:
                break
        return best

    @torch.no_grad()
    def spoken(self, fact: int, steps: Mapping[int, tuple[Maps, float]]) -> Tensor:
        """The next token behind a fact's own prompts, and behind each token of its object there, [n_own, n_tokens].

        Args:
            fact: Which.
            steps: Before which tokens of the object it is steered, by which maps and how far.
        """
        one = self.prompts[fact]
        start, place = len(one.behind), self._places["own"][fact]
        said = torch.empty(len(place), len(one.whole) - start, dtype=torch.long)
        for batch in self._ends["own"].picked(list(place), [one.whole[start:-1]] * len(place)):
            every = torch.arange(len(batch.rows), device=batch.last.device)

            def move(
                step: tuple[Maps, float], layer: int, h: Tensor, rows: Tensor = every
            ) -> list[tuple[Tensor, Tensor]]:
                maps, alpha = step
                return [(rows, alpha * maps[layer].displacement(h))]

            hooks = [
                hook
                for token, step in steps.items()
                for hook in _hooks(self._at(sorted(step[0])), partial(move, step), at=token - start)
            ]
            with self.model.hooks(hooks):
                said[batch.rows] = batch.every(self.model).argmax(-1).cpu()
        return said

    def _said(self, maps: Sequence[Maps], alphas: Sequence[float]) -> Tensor:
        """The next token [n] behind the own prompts; at full length, the pass in which the maps were fitted says it."""
        if maps is self._fitted[0] and set(alphas) == {1.0}:
            return self._fitted[1]
        return self.steered(self._ends["own"], self._owner, maps, alphas).argmax(-1).cpu()

    def steered(
        self, ends: PromptEnds, owner: Sequence[int], maps: Sequence[Maps], alphas: Sequence[float]
    ) -> Tensor:
        """`steered_logits` at this place."""
        layers = sorted({layer for one in maps for layer in one})
        return steered_logits(ends, owner, maps, alphas, self._at(layers))

    def _at(self, layers: Sequence[int]) -> Place:
        return Place(self.place.site, tuple(layers), self.place.heads)


@torch.no_grad()
def steered_logits(
    ends: PromptEnds, owner: Sequence[int], maps: Sequence[Maps], alphas: Sequence[float], place: Place
) -> Tensor:
    """Next-token logits [n_prompts, d_vocab] behind prompts that are steered, each by the maps of its own edit.

    Args:
        ends: The prompts.
        owner: Of each prompt, the number of its edit.
        maps: Of each edit, by layer.
        alphas: How far each edit goes.
        place: Where they steer.
    """

    def hooks(batch: EndBatch) -> list[Hook]:
        edits = torch.tensor([owner[row] for row in batch.rows], device=batch.last.device)
        inside = [(n, (edits == n).nonzero()[:, 0]) for n in edits.unique().tolist() if alphas[n] != 0]

        def move(layer: int, h: Tensor) -> list[tuple[Tensor, Tensor]]:
            return [(rows, alphas[n] * maps[n][layer].displacement(h[rows])) for n, rows in inside]

        return _hooks(place, move)

    return ends.logits(hooks)


# --- pieces -------------------------------------------------------------------------------------------------


def _groups(sizes: Sequence[int]) -> list[list[int]]:
    """The prompts of one fact run together, those of several where they are few."""
    groups: list[list[int]] = []
    start = 0
    for size in sizes:
        if not groups or len(groups[-1]) + size > TOGETHER:
            groups.append([])
        groups[-1] += range(start, start + size)
        start += size
    return groups


def _ranges(sizes: Sequence[int]) -> list[range]:
    """The places of each fact's prompts where they stand one after the other."""
    ends = list(itertools.accumulate(sizes, initial=0))
    return [range(*pair) for pair in itertools.pairwise(ends)]


def _chosen(logits: Tensor, token: int, *, every: bool) -> tuple[Tensor, int]:
    """The targets that count, of logits [n, d_vocab] behind them, and how many succeed."""
    success = logits.argmax(-1) == token
    if every:
        return torch.arange(len(logits), device=logits.device), int(success.sum())
    if not bool(success.any()):
        return logits.log_softmax(-1)[:, token].argmax()[None], 0
    return success.nonzero()[:, 0], int(success.sum())


def _keep(store: dict[int, list[Tensor]], layer: int, h: Tensor) -> tuple[()]:
    """A move that moves nothing, and keeps the states."""
    store[layer].append(h.detach().clone())
    return ()


def _hooks(place: Place, move: Move, *, at: int = -1) -> list[Hook]:
    """Hooks by which `move` changes one position, the last unless told, at every steered layer.

    `move` goes from a layer and the states h [B, d] there to rows and their displacements.
    """
    site = SITES[place.site]
    bases: dict[tuple[int, str], Tensor] = {}

    def keep(layer: int, base: str, states: Tensor, hook: object) -> None:
        bases[layer, base] = states[:, at].detach()

    def write(layer: int, states: Tensor, hook: object) -> Tensor:
        h = place.part(layer, states[:, at])
        for base in site.base:
            h = h + bases[layer, base]
        written = states.clone()
        for rows, displacement in move(layer, h):
            if place.site == "z":
                heads = torch.tensor(place.heads[layer], device=rows.device)
                written[rows[:, None], at, heads] += displacement.unflatten(1, (len(heads), -1))
            else:
                written[rows, at] += displacement
        return written

    hooks: list[Hook] = []
    for layer in place.layers:
        hooks += [(in_block(layer, base), partial(keep, layer, base)) for base in site.base]
        hooks.append((in_block(layer, site.write), partial(write, layer)))
    return hooks
