"""Facts to measure, and others to choose by: two splits that share no subject."""

from __future__ import annotations

from collections.abc import Sequence

from mechedit.data.facts import FactEdit, load_facts
from mechedit.factworld import edits
from mechedit.models.loading import EMBEDDED
from reports.errors import InputError

__all__ = ["facts_and_selection", "selection_for"]


def facts_and_selection(
    data: str, *, embedded: str, limit: int, selection: int, seed: int = 0
) -> tuple[list[FactEdit], list[FactEdit]]:
    """`limit` facts and `selection` others: of the file `data`, or of the world of an `embedded` model's name.

    Errors: `InputError` where there is neither a file nor an embedded model, or the file is too short.

    >>> facts, others = facts_and_selection("", embedded="factworld", limit=3, selection=2)
    >>> len(facts), len(others), {fact.subject for fact in facts} & {fact.subject for fact in others}
    (3, 2, set())
    """
    if data:
        facts = load_facts(data, limit=limit)
    elif embedded in EMBEDDED:
        facts = edits(limit, seed=seed)
    else:
        raise InputError(
            f"data: expected a file of facts for {embedded!r}; only {', '.join(EMBEDDED)} bring their own"
        )
    return facts, selection_for(facts, data, embedded=embedded, n=selection, seed=seed)


def selection_for(
    facts: Sequence[FactEdit], data: str, *, embedded: str, n: int, seed: int = 0
) -> list[FactEdit]:
    """Up to `n` facts about other subjects than those of `facts`: the world's own, or those behind them in the file.

    Errors: `InputError` where the file has fewer than two.
    """
    if embedded in EMBEDDED:
        return edits(n, seed=seed + 1, skip=facts)
    if not data:
        raise InputError(f"data: expected a file of facts, {n} of which choose window and gate, found none")
    subjects = {fact.subject for fact in facts}
    rest = [fact for fact in load_facts(data, limit=len(facts) + 4 * n) if fact.subject not in subjects][:n]
    if len(rest) < 2:
        raise InputError(
            f"data: {data} holds no facts beyond the {len(facts)} that are measured, and window, gate and the like are "
            "chosen on others; take a smaller --limit, or give them (--window 4-7 --gate always)"
        )
    return rest
