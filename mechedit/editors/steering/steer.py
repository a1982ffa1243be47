"""Steering edits: affine maps at the output of a sub-layer, opened by a gate, applied by hooks.

The edited model is the model itself with hooks attached: at each steered layer the state at a prompt's last token moves
by `α · P (M z + c)` (see `mechedit.editors.steering.transport`; where: `mechedit.editors.steering.sites`). With
`position="object"` the new object's own tokens move too, by maps of their own (`Following`), as long as the text behind
the prompt is the beginning of the object; with `position="every"` all tokens behind the prompt move, by the prompt's
map.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import pandas as pd
import torch
from torch import Tensor

from mechedit.editors.base import derive, lineage
from mechedit.editors.steering.gate_bank import PromptBatch
from mechedit.editors.steering.passes import follow
from mechedit.editors.steering.steering import Steering
from mechedit.editors.steering.steering_edit import SteeringEdit
from mechedit.models.active import ActiveEdit, named, noted
from mechedit.models.batching import batches
from mechedit.models.bridged import Prompts
from mechedit.models.hooked import HookedModel
from mechedit.models.hooking import Hook, attach

__all__ = ["SteeredModel", "steer", "unsteered"]


class SteeredModel(HookedModel):
    """A `HookedModel` under steering edits: the same interface, the same weights. Made by `steer`."""

    steering: Steering

    @property
    def edits(self) -> tuple[SteeringEdit, ...]:
        """The active edits."""
        return self.steering.edits

    def gate_fired(self, prompts: Prompts, *, batch_size: int = 64) -> list[bool]:
        """For each prompt whether the gate of an edit opens."""
        return (self._ratios(prompts, batch_size) <= 1).any(0).tolist()

    def shut_by_words(self, prompts: Prompts) -> list[bool]:
        """For each prompt whether its words alone keep the gates of these edits shut: there `base` speaks.

        False says nothing: what the gates read in a pass may keep them shut too.
        """
        batch = PromptBatch(self.encode(prompts), self.tokenizer)
        possible = torch.zeros(len(batch), dtype=torch.bool)
        for group in self.steering.bank.groups:
            possible |= group.screen(batch).any(0).cpu()
        return (~possible).tolist()

    def claims(self, prompts: Prompts, *, batch_size: int = 64) -> pd.DataFrame:
        """Which edits claim which prompts: frame prompt (its index), case_id, ratio (distance over threshold), steers.

        Of the edits that claim one prompt the nearest, with the smallest ratio, steers.
        """
        ratios = self._ratios(prompts, batch_size)
        edit, prompt = (ratios <= 1).nonzero().unbind(1)
        nearest = ratios.min(0).indices
        frame = pd.DataFrame(
            {
                "prompt": prompt.tolist(),
                "case_id": [str(self.edits[i].fact.case_id) for i in edit.tolist()],
                "ratio": ratios[edit, prompt].tolist(),
                "steers": (nearest[prompt] == edit).tolist(),
            }
        )
        return frame.sort_values(["prompt", "ratio"], kind="stable", ignore_index=True)

    @torch.no_grad()
    def _ratios(self, prompts: Prompts, batch_size: int) -> Tensor:
        """Distance over threshold of the open gates, else infinity [n_edits, n_prompts].

        Only prompts that words leave open are run, and these as far as the gates read.
        """
        ids = self.encode(prompts)
        ratios = torch.full((len(self.edits), len(ids)), torch.inf, device=self.device)
        asked = [i for i, shut in enumerate(self.shut_by_words(ids)) if not shut]
        for batch in batches([len(ids[i]) for i in asked], batch_size):
            rows = [asked[k] for k in batch]
            with self.steering.gates_alone():
                self.run(*self.pad([ids[i] for i in rows]), logits_to_keep=1)
            ratios[:, rows] = self.steering.ratios.to(ratios)
        return ratios


@contextlib.contextmanager
def steer(model: HookedModel, edits: Sequence[SteeringEdit]) -> Iterator[SteeredModel]:
    """`model` under the edits, for the length of the block; of several open gates the nearest edit steers.

    Inside the block `model` itself is steered too, as its repr shows.
    """
    steered = derive(SteeredModel, model)
    steered.steering = Steering(edits, device=model.device, dtype=model.dtype, tokenizer=model.tokenizer)
    hooks: list[Hook] = [(name, partial(_call, fn)) for name, fn in steered.steering.points()]
    facts = [(edit.fact.rewrite_prompt, edit.fact.target_new) for edit in edits]
    note = ActiveEdit(named("steering", facts), in_weights=False)
    with (
        follow(model.hf, steered.steering) as passes,
        attach(model.bridge, hooks, always=True),  # gates are read in the look ahead
        noted(model.hf, note),
    ):
        steered.steering.passes = passes
        yield steered


@contextlib.contextmanager
def unsteered(model: HookedModel) -> Iterator[None]:
    """No steering for the length of the block: editors are fitted on the model, not on what hooks add to it."""
    with contextlib.ExitStack() as stack:
        for edited in lineage(model):
            if isinstance(edited, SteeredModel):
                stack.enter_context(edited.steering.aside())
        yield


def _call(fn: Callable[[Tensor], Tensor | None], states: Tensor, hook: object) -> Tensor | None:
    return fn(states)
