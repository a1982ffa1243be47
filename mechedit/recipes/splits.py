"""The facts of a run: those that are measured, and others to choose by; the two share no subject."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Sequence
from dataclasses import replace

from mechedit.data.facts import FactEdit, LoadedFacts, load_facts
from mechedit.data.joining import Space
from mechedit.factworld import edits
from mechedit.factworld.export import ripple_tests
from mechedit.models.embedded import EMBEDDED
from mechedit.models.hooked import HookedModel
from mechedit.recipes.configurations import (
    SELECTION,
    AnatomyConfig,
    ComparisonConfig,
    DemoConfig,
    EvaluationConfig,
    FaithfulnessConfig,
)
from mechedit.recipes.known_facts import find_known
from reports.errors import InputError

__all__ = [
    "ablated_facts",
    "anatomy_facts",
    "compared_facts",
    "demo_facts",
    "evaluated_facts",
    "facts_and_selection",
    "further",
    "others_behind",
    "ripple_facts",
    "selection_for",
]

log = logging.getLogger(__name__)


def facts_and_selection(
    data: str,
    *,
    embedded: str,
    limit: int,
    selection: int,
    seed: int = 0,
    space: Space | None = None,
    begun_with: int | None = None,
) -> tuple[list[FactEdit], list[FactEdit]]:
    """Facts to measure, and others to choose by.

    Args:
        data: A file of facts, or "" for the world of an embedded model.
        embedded: The name of the model.
        limit: How many facts are measured.
        selection: How many others choose, at most.
        seed: Of the draw from the embedded world.
        space: As in `load_facts`.
        begun_with: The `limit` under which the selection was drawn, of a run that was extended (`further`).

    Raises:
        InputError: There is neither a file nor an embedded model, or the file is too short.

    >>> facts, rest = facts_and_selection("", embedded="factworld", limit=3, selection=2)
    >>> len(facts), len(rest), {fact.subject for fact in facts} & {fact.subject for fact in rest}
    (3, 2, set())
    """
    first = begun_with or limit
    if data:
        facts: list[FactEdit] = load_facts(data, limit=first, space=space or "auto")
    elif embedded in EMBEDDED:
        facts = edits(first, seed=seed)
    else:
        raise InputError(
            f"data: expected a file of facts for {embedded!r}; only {', '.join(EMBEDDED)} bring their own "
            f"(mechedit known --model {shlex.quote(embedded)} --out known.json writes the facts that it knows)"
        )
    others = selection_for(facts, data, embedded=embedded, n=selection, seed=seed, space=space)
    if begun_with is None:
        return facts, others
    behind: list[FactEdit] = (
        load_facts(data, space=space or "auto")[len(facts) :]
        if data
        else edits(None, seed=seed, skip=[*facts, *others])
    )
    return [*facts, *further(behind, others, limit - len(facts))], others


def further(behind: Sequence[FactEdit], selection: Sequence[FactEdit], n: int | None) -> list[FactEdit]:
    """The first `n` of the facts behind those that a run began with, none about a subject that it chooses by.

    An extended run keeps its cases, because it chooses on the same facts as before; they are never measured.
    """
    taken = {fact.subject for fact in selection}
    rest = [fact for fact in behind if fact.subject not in taken]
    if n is not None and n > len(rest):
        log.warning(
            "limit: of the %d facts more that are asked for, there are %d about subjects that nothing is chosen by",
            n,
            len(rest),
        )
    return rest[:n]


def selection_for(
    facts: Sequence[FactEdit],
    data: str,
    *,
    embedded: str,
    n: int,
    seed: int = 0,
    space: Space | None = None,
) -> list[FactEdit]:
    """Facts about other subjects than those of `facts`: the world's own, or those behind them in the file.

    Args:
        facts: The facts that are measured.
        data: The file that they are from, or "".
        embedded: The name of the model.
        n: How many, at most.
        seed: Of the draw from the embedded world.
        space: As in `load_facts`.

    Raises:
        InputError: The file has fewer than two.
    """
    if embedded in EMBEDDED:
        return edits(n, seed=seed + 1, skip=facts)
    if not data:
        raise InputError(f"data: expected a file of facts, {n} of which choose window and gate, found none")
    rest = others_behind(facts, data, n=n, space=space)
    if not rest:
        raise InputError(
            f"data: {data} holds no facts beyond the {len(facts)} that are measured, and window, gate and the like are "
            "chosen on others; take a smaller --limit, or give them (--window 4-7 --gate always)"
        )
    return rest


def others_behind(
    facts: Sequence[FactEdit], data: str, *, n: int, space: Space | None = None, skip_malformed: bool = False
) -> list[FactEdit]:
    """Of the file `data` up to `n` facts about other subjects than those of `facts`; one alone is none to choose by."""
    subjects = {fact.subject for fact in facts}
    behind = load_facts(data, limit=len(facts) + 4 * n, skip_malformed=skip_malformed, space=space or "auto")
    rest = [fact for fact in behind if fact.subject not in subjects][:n]
    return rest if len(rest) > 1 else []


def evaluated_facts(config: EvaluationConfig) -> tuple[LoadedFacts, LoadedFacts]:
    """The facts of an evaluation, and those of them that it began with."""
    malformed, space = config.skip_malformed, config.space or "auto"
    first = load_facts(
        config.data, limit=config.begun_with or config.limit, skip_malformed=malformed, space=space
    )
    if config.begun_with is None:
        return first, first
    if config.model in EMBEDDED:
        others = selection_for(first, config.data, embedded=config.model, n=SELECTION, seed=config.seed)
    else:
        others = others_behind(first, config.data, n=SELECTION, space=config.space, skip_malformed=malformed)
    behind = load_facts(config.data, skip_malformed=malformed, space=space)
    n = None if config.limit is None else config.limit - config.begun_with
    return LoadedFacts([*first, *further(behind[len(first) :], others, n)], behind.left_out), first


def compared_facts(config: ComparisonConfig, seed: int) -> tuple[list[FactEdit], list[FactEdit]]:
    """Facts and selection of one seed of a comparison.

    Case ids carry the seed, because two seeds may draw the same fact.
    """
    if config.data:
        facts, selection = _slice(config, seed)
    else:
        facts, selection = facts_and_selection(
            "",
            embedded=config.model,
            limit=config.limit,
            selection=config.selection,
            seed=seed,
            begun_with=config.begun_with,
        )
        facts = [replace(fact, ripple=ripple_tests(fact)) for fact in facts]
    return [replace(fact, case_id=f"{seed}.{fact.case_id}") for fact in facts], selection


def _slice(config: ComparisonConfig, seed: int) -> tuple[list[FactEdit], list[FactEdit]]:
    """Of a file: for each seed the next facts, so that none is measured twice; behind them all those that choose."""
    place, n = config.seeds.index(seed), len(config.seeds)
    everything, limit = (
        load_facts(config.data, space=config.space or "auto"),
        config.begun_with or config.limit,
    )
    facts = everything[place * limit : (place + 1) * limit]
    subjects = {fact.subject for fact in facts}
    behind = everything[n * limit :]
    rest = behind[place * config.selection :] + behind[: place * config.selection]
    others = [fact for fact in rest if fact.subject not in subjects][: config.selection]
    if not facts or len(others) < 2:
        raise InputError(
            f"data: expected {n} times {limit} facts to measure and {config.selection} to choose by, found "
            f"{len(everything)} in {config.data}; take a smaller limit or fewer seeds"
        )
    if (
        config.begun_with is not None
    ):  # further facts are dealt out to the seeds, so that none is measured twice
        facts = [*facts, *further(behind[place::n], others, config.limit - limit)]
    return facts, others


def demo_facts(
    model: HookedModel, config: DemoConfig, *, progress: bool = True
) -> tuple[list[FactEdit], list[FactEdit], str]:
    """Facts and selection of the demo, and where they are from: the embedded world, or what `model` knows of the atlas.

    Raises:
        InputError: The model knows too few.
    """
    if config.model in EMBEDDED:
        chosen = facts_and_selection(
            "", embedded="factworld", limit=config.limit, selection=config.selection, seed=config.seed
        )
        return *chosen, "the embedded world"
    known = find_known(model, limit=config.limit + config.selection, seed=config.seed, progress=progress)
    selection, facts = known.facts[: config.selection], known.facts[config.selection :]
    if not facts or len(selection) < config.selection:
        raise InputError(
            f"limit: expected a model that knows {config.selection} facts to choose by and {config.limit} to edit, "
            f"found that {known.said}; take a larger model, or facts of its own (mechedit evaluate --data)"
        )
    return facts, selection, f"the atlas ({known.said})"


def anatomy_facts(config: AnatomyConfig) -> tuple[list[FactEdit], list[FactEdit]]:
    """The facts of an anatomy, and those that choose its window."""
    return facts_and_selection(
        config.data,
        embedded=config.model,
        limit=config.limit,
        selection=config.selection,
        seed=config.seed,
        space=config.space,
        begun_with=config.begun_with,
    )


def ripple_facts(config: ComparisonConfig, facts: Sequence[FactEdit]) -> list[FactEdit]:
    """Of the first seed's facts those on which a comparison asks RippleEdits' axes."""
    return [fact for fact in facts if fact.ripple][: config.ripple_facts]


def ablated_facts(config: FaithfulnessConfig) -> tuple[list[FactEdit], list[FactEdit]]:
    """The facts of a study of faithfulness, and those whose prompts are averaged."""
    if config.data and not config.mean_over:
        return load_facts(config.data, limit=config.limit, space=config.space or "auto"), []
    facts, rest = facts_and_selection(
        config.data,
        embedded=config.models[0],
        limit=config.limit,
        selection=max(1, config.mean_over),
        seed=config.seed,
        space=config.space,
        begun_with=config.begun_with,
    )
    return facts, rest[: config.mean_over]
