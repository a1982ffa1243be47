"""Where an edit looks: the subject's last token, the contexts before a prompt, and the texts that are optimised on.

1. *Subject*: the last token that holds a character of the subject, by the tokenizer's offsets, counted from the text's
   end, so that a BOS or any other prefix does not move it.
2. *Contexts*: the rewrite prompt alone, and behind short texts that the model itself writes (ROME, appendix E.5), so
   that a key is the subject's and not one prompt's.
3. *Batch*: for each fact the rows [context + prompt + new object without its last token], one row "{subject} is a" for
   the drift of what the subject is, and the places whose predictions the loss reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mechedit.data.facts import FactEdit
from mechedit.models.hooked import HookedModel
from reports.errors import InputError

__all__ = ["EditBatch", "edit_batch", "subject_end", "subject_ids", "target_places"]

DRIFT = "{} is a"


def subject_end(model: HookedModel, template: str, subject: str, *, context: str = "") -> tuple[Tensor, int]:
    """Ids of the prompt behind `context`, and the position of the subject's last token in them.

    Args:
        model: Whose tokenizer is used.
        template: The prompt, with `{}` in the place of the subject.
        subject: The subject.
        context: A text before the prompt.

    Raises:
        InputError: The tokenizer gives no offsets.

    >>> import mechedit as me
    >>> model = me.load_model("factworld")
    >>> ids, at = subject_end(model, "{} speaks", "Anna Novak")
    >>> model.tokenizer.decode(ids[: at + 1])
    'Anna Novak'
    """
    head, _, tail = template.partition("{}")
    text = context + head + subject + tail
    if not model.tokenizer.is_fast:
        raise InputError("tokenizer: expected one that knows its tokens' offsets (a fast one), found another")
    written = model.written(text)
    spans = model.tokenizer(
        written.text,
        add_special_tokens=False,
        split_special_tokens=not written.special,
        return_offsets_mapping=True,
    ).offset_mapping
    at = written.text.rfind(text.strip()) - (
        len(text) - len(text.lstrip())
    )  # in a chat template, behind IKE's text
    end = at + len(context + head + subject.rstrip())
    behind = sum(start >= end for start, _ in spans)
    ids = model.tokenize(text)
    return ids, len(ids) - 1 - behind


def subject_ids(model: HookedModel, template: str, subject: str, *, context: str = "") -> Tensor:
    """The prompt's ids up to and with the subject's last token."""
    ids, at = subject_end(model, template, subject, context=context)
    return ids[: at + 1]


@dataclass(frozen=True, eq=False)
class EditBatch:
    """The rows of several facts that are optimised on, and the places that the loss reads.

    Attributes:
        texts: Ids of each row.
        starts: The position of the subject's last token in each row.
        fact: Whose row it is [B].
        row: The rows that predict the new objects' tokens [N].
        column: The places in these rows, counted from `starts` [N].
        token: The tokens that are predicted [N].
        weight: Their weights [N], which sum to 1 for each fact.
        drift_row: The row "{subject} is a" of each fact [F].
        drift_column: The place where it is read [F].
    """

    texts: tuple[Tensor, ...]
    starts: tuple[int, ...]
    fact: Tensor
    row: Tensor
    column: Tensor
    token: Tensor
    weight: Tensor
    drift_row: Tensor
    drift_column: Tensor

    def without(self, finished: Tensor) -> tuple[EditBatch, Tensor]:
        """The same without the rows of the facts where `finished` [F] holds, and the index of the rows kept."""
        rows = (~finished[self.fact]).nonzero()[:, 0]
        new_row = torch.full_like(self.fact, -1)
        new_row[rows] = torch.arange(len(rows), device=rows.device)
        reads = new_row[self.row] >= 0
        kept = EditBatch(
            texts=tuple(self.texts[i] for i in rows.tolist()),
            starts=tuple(self.starts[i] for i in rows.tolist()),
            fact=self.fact[rows],
            row=new_row[self.row[reads]],
            column=self.column[reads],
            token=self.token[reads],
            weight=self.weight[reads],
            # A finished fact keeps its number, and reads a row that nobody looks at.
            drift_row=new_row[self.drift_row].clamp(min=0),
            drift_column=self.drift_column.where(~finished, 0),
        )
        return kept, rows


def edit_batch(model: HookedModel, facts: Sequence[FactEdit], before: Sequence[str]) -> EditBatch:
    """The rows of `facts` behind the contexts `before`.

    Raises:
        InputError: As `HookedModel.continuation`.
    """
    texts: list[Tensor] = []
    starts: list[int] = []
    owner: list[int] = []
    reads: list[tuple[int, int, int, float]] = []
    drift: list[tuple[int, int]] = []
    for number, fact in enumerate(facts):
        for context in before:
            _, at = subject_end(model, fact.prompt, fact.subject, context=context)
            prompt, target = model.continuation(
                context + fact.rewrite_prompt, fact.target_new, space=fact.space
            )
            share = 1 / (len(before) * len(target))
            first = len(prompt) - 1 - at
            reads += [(len(texts), first + i, int(token), share) for i, token in enumerate(target)]
            texts.append(torch.cat([prompt, target[:-1]]))
            starts.append(at)
            owner.append(number)
        ids, at = subject_end(model, DRIFT, fact.subject)
        drift.append((len(texts), len(ids) - 1 - at))
        texts.append(ids)
        starts.append(at)
        owner.append(number)
    row, column, token, weight = (
        torch.tensor(list(values), device=model.device) for values in zip(*reads, strict=True)
    )
    drift_row, drift_column = torch.tensor(drift, device=model.device).T
    fact_of = torch.tensor(owner, device=model.device)
    return EditBatch(
        tuple(texts), tuple(starts), fact_of, row, column, token, weight.float(), drift_row, drift_column
    )


def target_places(model: HookedModel, pairs: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, ...]:
    """row, column, token, weight [N]: where rows [prompt + target without its last token] predict the targets.

    Args:
        model: Whose device the result is on.
        pairs: Ids of each prompt and its target; a target's tokens weigh 1 / (their number · number of pairs).
    """
    places = [(r, len(p) - 1 + i) for r, (p, target) in enumerate(pairs) for i in range(len(target))]
    row, column = torch.tensor(places, device=model.device).T
    token = torch.cat([target for _, target in pairs])
    weight = torch.cat([torch.full((len(t),), 1 / (len(t) * len(pairs))) for _, t in pairs])
    return row, column, token, weight.to(model.device)
