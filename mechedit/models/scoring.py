"""Log-probability of an object behind a prompt, as the model would reach it when it generates.

Steps, for each batch of prompts, padded on the left, with the objects that are asked behind each of them:

1. one pass over the prompts, each once, fills the KV cache and predicts the first token of each object;
2. the objects that go on take a copy each of their prompt's part of the cache;
3. one pass of a single position per further token, with the *right* object's token fed in (teacher forcing).

This is the path of `HookedModel.generate`, so a steering hook that addresses the last position as −1 acts
where it acts during generation: at the prompt's last token and at each token behind it. One padded pass over
prompt and object together gives the same numbers for a model without such a hook, and would let the hook miss
the prompt's end. Prompts of like length run together (`mechedit.models.batching`); results are in the order of the
pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import torch

from experiments.progress import counted
from mechedit.models.batching import batches
from mechedit.models.bridged import BridgedModel

__all__ = ["Scored", "score_pairs", "scored_row"]

Pair = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True, eq=False)
class Scored:
    """One object behind one prompt.

    Attributes:
        ids: Its tokens [n].
        logps: log p(o_j | prompt, o_<j) [n], fp32, nats.
        hits: Whether o_j alone has the highest logit [n]; a tie is no hit.
        argmax: The likeliest token in the place of each o_j [n].
        next_id: The likeliest token behind the prompt, None where its logits hold a NaN.
    """

    ids: tuple[int, ...]
    logps: torch.Tensor
    hits: torch.Tensor
    argmax: tuple[int, ...]
    next_id: int | None

    @property
    def nll(self) -> float:
        """−(1/n) Σ_j logps_j, in nats per token; NaN if any of them is."""
        return -float(self.logps.mean())

    @property
    def all_hit(self) -> float:
        """1.0 if every token is the argmax, teacher-forced: greedy decoding would write it; else 0.0."""
        return float("nan") if self.logps.isnan().any() else float(self.hits.all())

    @property
    def share_hit(self) -> float:
        """The share of the tokens that are the argmax, teacher-forced: one of three right is 0.33."""
        return float("nan") if self.logps.isnan().any() else float(self.hits.float().mean())


def score_pairs(model: BridgedModel, pairs: Sequence[Pair], *, batch_size: int = 32) -> list[Scored]:
    """Score the objects of (prompt, object) pairs, in their order, `batch_size` at a time.

    Batch mates and padding change nothing but rounding.

    Args:
        model: Any bridged model, under its hooks.
        pairs: (ids of the prompt [T], ids of the object [n]) each.
        batch_size: Prompts that run together.

    Raises:
        InputError: The batch size is below 1, or a pair is longer than the model's context.
    """
    owners: dict[tuple[int, ...], list[int]] = {}
    for i, (prompt, _) in enumerate(pairs):
        owners.setdefault(tuple(prompt.tolist()), []).append(i)
    prompts = list(owners.values())
    scores: dict[int, Scored] = {}
    for batch in counted(
        list(batches([len(prompt) for prompt in owners], batch_size)), "prompts", unit=f"{batch_size} prompts"
    ):
        of_batch = [prompts[k] for k in batch]
        rows = _batch_logits(
            model,
            [pairs[of_prompt[0]][0] for of_prompt in of_batch],
            [[pairs[i][1] for i in of_prompt] for of_prompt in of_batch],
        )
        scores |= {
            i: scored_row(row, pairs[i][1])
            for i, row in zip(chain.from_iterable(of_batch), rows, strict=True)
        }
    return [scores[i] for i in range(len(pairs))]


def scored_row(logits: torch.Tensor, target: torch.Tensor) -> Scored:
    """`Scored` of one object [n] from the logits [n, V] that predict its tokens.

    >>> uniform = scored_row(torch.zeros(1, 4), torch.tensor([2]))
    >>> round(uniform.nll, 4), uniform.hits.tolist()        # ln 4; four tokens tie, so none is the argmax
    (1.3863, [False])
    """
    logits, target = logits.float().cpu(), target.cpu()
    chosen = logits.gather(-1, target[:, None])
    first_is_nan = bool(logits[0].isnan().any())
    return Scored(
        ids=tuple(target.tolist()),
        logps=logits.log_softmax(-1).gather(-1, target[:, None])[:, 0],
        hits=(logits >= chosen).sum(-1) == 1,
        argmax=tuple(logits.argmax(-1).tolist()),
        next_id=None if first_is_nan else int(logits[0].argmax()),
    )


@torch.no_grad()
def _batch_logits(
    model: BridgedModel, prompts: Sequence[torch.Tensor], objects: Sequence[Sequence[torch.Tensor]]
) -> list[torch.Tensor]:
    """For each object behind each prompt the logits [n, V] in front of each of its tokens."""
    ids, mask = model.pad(prompts)
    targets = [target for of_prompt in objects for target in of_prompt]
    row = torch.tensor([k for k, of_prompt in enumerate(objects) for _ in of_prompt])
    going_on = torch.tensor([i for i, target in enumerate(targets) if len(target) > 1], dtype=torch.long)
    logits, cache = model.run(ids, mask, use_cache=len(going_on) > 0, logits_to_keep=1)
    steps = [[logits[k, -1]] for k in row.tolist()]
    if len(going_on):
        rows = row[going_on]  # on the CPU: layers may lie on several devices
        cache.batch_select_indices(rows)
        mask = mask[rows]
        fed, _ = model.pad([targets[i] for i in going_on.tolist()], side="right")
        for position in range(fed.shape[1] - 1):
            ids = fed[:, position : position + 1]
            mask = torch.cat([mask, torch.ones_like(ids)], dim=1)
            logits, cache = model.run(ids, mask, use_cache=True, past_key_values=cache, logits_to_keep=1)
            for place, i in enumerate(going_on.tolist()):
                steps[i].append(logits[place, -1])
    return [torch.stack(each[: len(target)]) for each, target in zip(steps, targets, strict=True)]
