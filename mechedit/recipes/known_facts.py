"""Real facts that a model knows: of the atlas, or of a file. An edit of a fact that is not there is an insertion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from experiments.progress import track
from mechedit.data import atlas
from mechedit.data.facts import FactEdit
from mechedit.evaluation.evaluate import known_facts
from mechedit.models.hooked import HookedModel
from reports.errors import InputError

__all__ = ["Known", "find_known"]

TOGETHER = 64  # facts that are asked at once


@dataclass(frozen=True)
class Known:
    """Facts that a model knows.

    Attributes:
        facts: In the order in which they were asked.
        n_asked: How many were asked.
    """

    facts: list[FactEdit]
    n_asked: int

    @property
    def said(self) -> str:
        """What a reader is told."""
        return f"{len(self.facts)} of the {self.n_asked} facts that were asked are known"


def find_known(
    model: HookedModel,
    facts: Sequence[FactEdit] | None = None,
    *,
    limit: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Known:
    """The facts that greedy decoding of their rewrite prompts answers, `limit` of them or all.

    Args:
        model: Any.
        facts: Are asked in this order; None: the atlas, its relations in turn, no two facts about one subject.
        limit: Asks no more once so many are known.
        seed: Of the atlas' order.
        progress: Shows how far it is.

    Raises:
        InputError: None is known.

    >>> import mechedit as me
    >>> model, facts = me.load_model("factworld"), me.factworld.edits(3)
    >>> find_known(model, facts, progress=False).said
    '3 of the 3 facts that were asked are known'
    """
    asked = atlas.edits(None, seed) if facts is None else list(facts)
    chunks = [asked[i : i + TOGETHER] for i in range(0, len(asked), TOGETHER)]
    found: list[FactEdit] = []
    n_asked = 0
    for chunk in track(chunks, label="known facts", progress=progress, unit=f"{TOGETHER} facts"):
        answers = known_facts(model, chunk)
        for fact, known in zip(chunk, answers, strict=True):
            n_asked += 1
            found += [fact] if known else []
            if len(found) == limit:
                return Known(found, n_asked)
    if not found:
        raise InputError(
            f"model: expected one that knows some of {n_asked} facts, found that {model.name} answers none; take a "
            "model that is trained on text, or facts of its own (--data)"
        )
    return Known(found, n_asked)
