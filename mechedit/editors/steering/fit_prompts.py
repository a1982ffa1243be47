"""The prompts that a steering map is fitted on: what the model reads now, and what it would read if it knew.

Source: SAKE (arXiv 2503.01751). For a paraphrase p_j of the rewrite prompt,
source -> target:

- plain: `p_j` -> a target form over p_j, SAKE's being `Do not mention 'OLD'. Repeat this sentence: 'p_j NEW'. p_j`
- forced: `Repeat this sentence: 'p_j OLD'. p_j` -> the same
- implication: `Considering this context is now true: '<original fact>'. Complete this sentence:c_j` ->
  `Pretend that this context is true ...: '<edited fact>'. Now, ..., complete this sentence:c_j`

The implication prompts whose difference points most like the paraphrases' mean difference are kept and copied with
noise, as SAKE does for the Popular data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from mechedit.data.facts import FactEdit
from mechedit.data.joining import Space, joined
from mechedit.data.prompts import avoid, consider, demonstration, doubt, doubt_old, pretend, repeat

__all__ = [
    "TARGETS",
    "Source",
    "TargetForm",
    "align_implications",
    "doubts",
    "implication_pairs",
    "sources",
    "targets",
]

Source = Literal["plain", "forced", "both"]
TargetForm = Literal["avoid", "new_fact", "statement", "correction"]
#: From a prompt, the old and the new object, and the space before them, to the prompt behind which the model is to say
#: the new one.
TARGETS: Mapping[TargetForm, Callable[[str, str, str, Space], str]] = {
    "avoid": lambda p, old, new, space: avoid(p, old, new, space=space),
    "new_fact": lambda p, old, new, space: demonstration(p, new, p, space=space),
    "statement": lambda p, old, new, space: f"{joined(p, new, space)}. {p}",
    "correction": lambda p, old, new, space: (
        f"It is now known that {joined(p, new, space)}, not {old}. So {p}"
    ),
}
KEPT, COPIES, NOISE = 10, 4, 0.1


def sources(fact: FactEdit, prompts: Sequence[str], source: Source) -> list[str]:
    """The source prompts over the paraphrases `prompts`.

    >>> sources(FactEdit("Ann", "{} speaks", "Dutch", "Greek"), ["Ann speaks"], "forced")
    ["Repeat this sentence: 'Ann speaks Dutch'. Ann speaks"]
    """
    plain = list(prompts) if source in ("plain", "both") else []
    return plain + (
        [repeat(p, fact.target_true, space=fact.space) for p in prompts]
        if source in ("forced", "both")
        else []
    )


def targets(fact: FactEdit, prompts: Sequence[str], form: TargetForm) -> list[str]:
    """The target prompts over the paraphrases `prompts`.

    >>> targets(FactEdit("Ann", "{} speaks", "Dutch", "Greek"), ["Ann speaks"], "statement")
    ['Ann speaks Greek. Ann speaks']
    """
    return [TARGETS[form](p, fact.target_true, fact.target_new, fact.space) for p in prompts]


def implication_pairs(fact: FactEdit, prompts: Sequence[str]) -> tuple[list[str], list[str]]:
    """Source and target of the implication prompts c_j, one of each a prompt.

    >>> fact = FactEdit("Ann", "{} was born in", "Paris", "Rome")
    >>> implication_pairs(fact, ["Ann's country is"])[0]
    ["Considering this context is now true: 'Ann was born in Paris'. Complete this sentence:Ann's country is"]
    """
    old, new = fact.stated(fact.target_true), fact.stated(fact.target_new)
    return [consider(old, c) for c in prompts], [pretend(new, c) for c in prompts]


def align_implications(
    difference: Tensor, source: Tensor, target: Tensor, *, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """The pairs of states whose difference points most like another one, copied with noise.

    The `KEPT` pairs of the highest cosine are kept, each `COPIES` times with N(0, `NOISE`) noise.

    Args:
        difference: The difference to be like [d].
        source: States [n, d].
        target: Their partners [n, d].
        generator: Of the noise.
    """
    cosine = torch.cosine_similarity(target - source, difference[None].to(source), dim=1)
    best = cosine.topk(min(KEPT, len(cosine))).indices.sort().values.repeat_interleave(COPIES)
    noise = (torch.randn(2, len(best), source.shape[1], generator=generator) * NOISE).to(source)
    return source[best] + noise[0], target[best] + noise[1]


def doubts(fact: FactEdit, prompts: Sequence[str]) -> list[str]:
    """The two doubt forms that DI and DII ask over prompts about the fact.

    >>> len(doubts(FactEdit("Ann", "{} speaks", "Dutch", "Greek"), ["Ann speaks", "Ann talks"]))
    4
    """
    new, old, space = fact.target_new, fact.target_true, fact.space
    return [ask for p in prompts for ask in (doubt(p, new, space=space), doubt_old(p, new, old, space=space))]
