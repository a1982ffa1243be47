"""The tokens that decide: how much of an object must be seen before it is told from another one.

Two objects behind one prompt may begin alike (" New| York", " New| Delhi"), and a tokenizer may write a bare space
before a number (" |1|9|4|5"). Then the first token says nothing. Steps:

1. `divergence`: the index of the first token in which the objects differ, plus one;
2. `through_text`: the number of tokens through the first one with text; a bare space has none, nor has a piece of a
   character;
3. `decide`: the larger of both, for each object. An object alone is read through its first token with text.

A model *says* an object where, teacher-forced, each of its deciding tokens is the likeliest (`begins`). Where the new
object is the beginning of the old one, the token that goes on to the old one must not follow. For objects whose first
tokens have text and differ, one token decides.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mechedit.data.joining import Space
from mechedit.models.bridged import BridgedModel
from mechedit.models.scoring import score_pairs

__all__ = [
    "Deciding",
    "begins",
    "decide",
    "divergence",
    "read_anew",
    "says_object",
    "through_text",
    "written_text",
]

_BROKEN = "\ufffd"  # what a piece of a character decodes to
_LONGEST_GAP = 8  # tokens without text that a model may write in a row before it is not asked any further


@dataclass(frozen=True)
class Deciding:
    """Which tokens of two objects tell them apart.

    Attributes:
        new: Ids of the object.
        old: Ids of the one that it is told from; none where it stands alone.
        n_new: How many tokens of the object decide.
        n_old: How many of the other one.
    """

    new: tuple[int, ...]
    old: tuple[int, ...]
    n_new: int
    n_old: int

    @property
    def shared(self) -> int:
        """How many tokens both objects begin with."""
        return divergence(self.new, self.old) - 1 if self.old else 0

    @property
    def one_token(self) -> bool:
        """Whether the object's first token decides alone."""
        return self.n_new == 1 and not self.begins_old

    @property
    def begins_old(self) -> bool:
        """Whether the object is the beginning of the other one."""
        return len(self.new) < len(self.old) and self.old[: len(self.new)] == self.new


def divergence(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens of two objects it takes to tell them apart: index of the first difference, plus one.

    Where the first tokens differ, that is one; where they agree (" San| Diego", " San| Jose"), one token would compare
    a number with itself. Where one object begins with the whole other one it is one more than the shorter one has.

    >>> divergence([5, 7], [6]), divergence([5, 7], [5, 8, 9]), divergence([5], [5, 8])
    (1, 2, 2)
    """
    for index, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return index + 1
    return min(len(a), len(b)) + 1


def through_text(tokenizer: Any, ids: Sequence[int]) -> int:
    """How many tokens it takes until there is text: white space and pieces of a character are none; all if none is.

    >>> from transformers import AutoTokenizer
    >>> import mechedit as me
    >>> tokenizer = me.load_model("factworld").tokenizer
    >>> through_text(tokenizer, tokenizer(" Paris").input_ids)
    1
    """
    for n in range(1, len(ids)):
        if _has_text(str(tokenizer.decode(list(ids[:n])))):
            return n
    return len(ids)


def decide(tokenizer: Any, new: Sequence[int], old: Sequence[int] = ()) -> Deciding:
    """The tokens of `new` that tell it from `old`, and the other way round; alone, those through its first text.

    Args:
        tokenizer: The model's.
        new: Ids of an object behind a prompt.
        old: Ids of another one behind the same prompt.
    """
    depth = divergence(new, old) if len(old) else 1
    lengths = [
        max(min(depth, len(ids)), through_text(tokenizer, ids)) if len(ids) else 0 for ids in (new, old)
    ]
    return Deciding(tuple(map(int, new)), tuple(map(int, old)), *lengths)


def begins(
    tokenizer: Any,
    argmax: Sequence[int | None],
    decided: Deciding,
    texts: tuple[str, str],
    *,
    goes_on: bool = False,
) -> float:
    """1.0 if what a model writes is the object and not the other one, as far as the deciding tokens say; else 0.0.

    All but the last of them must be the likeliest token, teacher-forced; in the place of the last one a token counts
    whose text the object goes on with and the other object does not: another segmentation of the same word.

    Args:
        tokenizer: The model's.
        argmax: The likeliest token in the place of each token of the object [n]; None where the logits hold a NaN.
        decided: The tokens that decide.
        texts: The object, and the other one ("" where there is none).
        goes_on: Whether the likeliest token behind the whole object leads on to the other one.
    """
    n = decided.n_new
    seen = list(argmax[:n])
    if None in seen:
        return math.nan
    if seen == list(decided.new[:n]):
        return float(not (decided.begins_old and goes_on))
    if seen[:-1] != list(decided.new[: n - 1]):
        return 0.0
    written = str(tokenizer.decode(seen)).strip()
    new, old = (text.strip() for text in texts)
    return float(written != "" and new.startswith(written) and not old.startswith(written))


def says_object(
    model: BridgedModel, prompts: Sequence[str], new: str, old: str = "", *, space: Space = "auto"
) -> list[bool]:
    """For each prompt whether greedy decoding writes the tokens that tell `new` from `old` (or begin it, alone).

    Args:
        model: Any bridged model, under its hooks.
        prompts: Texts.
        new: The object.
        old: Another object, "" for none.
        space: As in `BridgedModel.continuation`.

    >>> import mechedit as me
    >>> model, fact = me.load_model("factworld"), me.factworld.edits(1)[0]
    >>> says_object(model, [fact.rewrite_prompt], fact.target_true, fact.target_new)
    [True]
    """
    pairs = [model.continuation(prompt, new, space=space) for prompt in prompts]
    others = [model.continuation(prompt, old, space=space)[1].tolist() if old else [] for prompt in prompts]
    decided = [
        decide(model.tokenizer, ids.tolist(), other) for (_, ids), other in zip(pairs, others, strict=True)
    ]
    said = [False] * len(prompts)
    single = [i for i, each in enumerate(decided) if each.one_token]
    if single:
        tokens = model.logits([pairs[i][0] for i in single]).argmax(-1).tolist()
        for i, token in zip(single, tokens, strict=True):
            said[i] = token == decided[i].new[0]
    several = [i for i, each in enumerate(decided) if not each.one_token]
    # One token more where the object begins the other one: the model must not go on to that.
    longer = [decided[i].old if decided[i].begins_old else decided[i].new for i in several]
    wanted = [ids[: decided[i].n_new + decided[i].begins_old] for i, ids in zip(several, longer, strict=True)]
    scores = score_pairs(
        model, [(pairs[i][0], torch.tensor(ids)) for i, ids in zip(several, wanted, strict=True)]
    )
    for i, scored in zip(several, scores, strict=True):
        n = decided[i].n_new
        goes_on = decided[i].begins_old and scored.argmax[n] == scored.ids[n]
        said[i] = scored.argmax[:n] == scored.ids[:n] and not goes_on and scored.next_id is not None
    return said


def read_anew(
    model: BridgedModel, pairs: Iterable[tuple[str, str, str]], *, space: Space = "auto"
) -> list[str]:
    """What a digest of settings says where earlier versions, which read one token, scored something else; else nothing.

    Args:
        model: Any bridged model.
        pairs: Prompt, object, and the object that it is told from ("" for none) of each.
        space: As in `BridgedModel.continuation`.
    """
    for prompt, new, old in pairs:
        ids = [
            model.continuation(prompt, target, space=space)[1].tolist() if target else []
            for target in (new, old)
        ]
        decided = decide(model.tokenizer, *ids)
        if not decided.one_token or decided.n_old > 1:
            return ["tokens that decide"]
    return []


@torch.no_grad()
def written_text(model: BridgedModel, prompts: Sequence[str]) -> list[str]:
    """For each prompt the greedy next token as text; where that is a bare space, with those behind it."""
    texts = [""] * len(prompts)
    tokens = model.logits(prompts).argmax(-1).tolist() if len(prompts) else []
    for i, (prompt, token) in enumerate(zip(prompts, tokens, strict=True)):
        ids = [token]
        while len(ids) < _LONGEST_GAP and not str(model.tokenizer.decode(ids)).strip(f" {_BROKEN}"):
            head = model.tokenize(prompt)
            last = torch.tensor([*ids, 0], device=head.device)
            ids.append(score_pairs(model, [(head, last)])[0].argmax[-1])
        texts[i] = str(model.tokenizer.decode(ids))
    return texts


def _has_text(text: str) -> bool:
    return text.strip().strip(_BROKEN) != ""
