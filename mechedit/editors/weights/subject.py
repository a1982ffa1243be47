"""Where an edit looks: the subject's last token, the contexts before a prompt, and the texts that are optimised on.

1. *Subject*: the last token that holds a character of the subject, by the tokenizer's offsets, counted from the text's
   end, so that a BOS or any other prefix does not move it.
2. *Contexts*: the rewrite prompt alone, and behind short texts that the model itself writes (ROME, appendix E.5), so
   that a key is the subject's and not one prompt's.
3. *Asked*: for each fact the rows [context + prompt + new object without its last token], one row "{subject} is a" for
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

__all__ = ["Asked", "ask", "subject_end", "subject_ids"]

DRIFT = "{} is a"


def subject_end(model: HookedModel, template: str, subject: str, *, context: str = "") -> tuple[Tensor, int]:
    """Ids of the prompt behind `context`, and the position of the subject's last token in them.

    Errors: `InputError` where the tokenizer gives no offsets.

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
    spans = model.tokenizer(
        text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True
    ).offset_mapping
    end = len(context + head + subject.rstrip())
    behind = sum(start >= end for start, _ in spans)
    ids = model.tokenize(text)
    return ids, len(ids) - 1 - behind


def subject_ids(model: HookedModel, template: str, subject: str, *, context: str = "") -> Tensor:
    """The prompt's ids up to and with the subject's last token."""
    ids, at = subject_end(model, template, subject, context=context)
    return ids[: at + 1]


@dataclass(frozen=True, eq=False)
class Asked:
    """The rows of several facts and what is read there.

    texts, starts: ids of each row and the position of the subject's last token; fact [B]: whose row it is.
    row, column, token, weight [N]: the places that predict the new objects' tokens, columns counted from the row's
    start, with weights that sum to 1 for each fact; drift_row, drift_column [F]: where "{subject} is a" is read.
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

    def without(self, finished: Tensor) -> tuple[Asked, Tensor]:
        """The same without the rows of the facts where `finished` [F] holds, and the index of the rows kept."""
        rows = (~finished[self.fact]).nonzero()[:, 0]
        new_row = torch.full_like(self.fact, -1)
        new_row[rows] = torch.arange(len(rows), device=rows.device)
        reads = new_row[self.row] >= 0
        kept = Asked(
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


def ask(model: HookedModel, facts: Sequence[FactEdit], before: Sequence[str]) -> Asked:
    """The rows of `facts` behind the contexts `before`. Errors: `InputError` as `HookedModel.continuation`."""
    texts: list[Tensor] = []
    starts: list[int] = []
    owner: list[int] = []
    reads: list[tuple[int, int, int, float]] = []
    drift: list[tuple[int, int]] = []
    for number, fact in enumerate(facts):
        for context in before:
            _, at = subject_end(model, fact.prompt, fact.subject, context=context)
            prompt, target = model.continuation(context + fact.rewrite_prompt, fact.target_new)
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
        torch.tensor(list(one), device=model.device) for one in zip(*reads, strict=True)
    )
    drift_row, drift_column = torch.tensor(drift, device=model.device).T
    fact_of = torch.tensor(owner, device=model.device)
    return Asked(
        tuple(texts), tuple(starts), fact_of, row, column, token, weight.float(), drift_row, drift_column
    )
