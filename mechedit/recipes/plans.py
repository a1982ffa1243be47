"""What each experiment is going to do, made of the facts and case ids that the run itself walks; no model is loaded.

Counted are sequences that are scored (a prompt with an object behind it, or one pass of an attribution), and edits.
Facts that the model does not know are not edited, so where there are some the run does less.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from experiments.checkpoints import local_bytes
from experiments.recipe import Plan
from mechedit.anatomy.study import case_key as anatomy_key
from mechedit.data.facts import FactEdit, load_facts
from mechedit.evaluation.evaluate import case_key
from mechedit.evaluation.measure import questions_of
from mechedit.evaluation.ripple import case_key as ripple_key
from mechedit.faithfulness.rankings import METHODS
from mechedit.faithfulness.study import KINDS
from mechedit.faithfulness.study import case_key as ablation_key
from mechedit.models.loading import FOLDERS
from mechedit.recipes.anatomy import AnatomyConfig
from mechedit.recipes.compare import FAMILIES, ComparisonConfig, followed, split
from mechedit.recipes.demo import LABELS as DEMO_EDITORS
from mechedit.recipes.demo import DemoConfig, attribution_key
from mechedit.recipes.faithfulness import FaithfulnessConfig, chosen_facts
from mechedit.recipes.splits import facts_and_selection

__all__ = ["plan_anatomy", "plan_comparison", "plan_demo", "plan_evaluation", "plan_faithfulness"]

EDITS = "An edit runs the model too, as often as its editor needs (steps of a search, prompts that are read)."
CHOICE = "So does choosing window, gate and the like on the selection."


def plan_comparison(config: ComparisonConfig) -> Plan:
    """Of `mechedit.recipes.compare.compare`."""
    cases: list[str] = []
    sequences = 0
    splits = {seed: split(config, seed)[0] for seed in config.seeds}
    for facts in splits.values():
        cases += [case_key(editor, fact) for editor in config.editors for fact in facts]
        sequences += _unedited(facts) + len(config.editors) * _scored(facts, FAMILIES)
    facts = splits[config.seeds[0]]
    few = facts[: config.ablation_facts]
    cases += [case_key(editor, fact) for editor in config.ablations for fact in few]
    sequences += _unedited(few) + len(config.ablations) * _scored(few, FAMILIES)
    tested = followed(config, facts)
    cases += [ripple_key(editor, fact) for editor in config.editors for fact in tested]
    more = ("RippleEdits' queries are generated, not scored.",) if tested else ()
    return _plan(config, cases, sequences, len(cases), more)


def plan_anatomy(config: AnatomyConfig) -> Plan:
    """Of `mechedit.recipes.anatomy.run_anatomy`: a pass a fact, and one under each editor as set and made to fail."""
    facts, selection = facts_and_selection(
        config.data, embedded=config.model, limit=config.limit, selection=config.selection, seed=config.seed
    )
    splits = {"selection": selection, "fact": facts}
    cases = [anatomy_key(name, fact) for name, chosen in splits.items() for fact in chosen]
    edits = 2 * len(config.editors) * len(cases)
    return _plan(config, cases, len(facts) + 2 * len(cases) + edits, edits)


def plan_demo(config: DemoConfig) -> Plan:
    """Of `mechedit.recipes.demo.run_demo`."""
    facts, _ = facts_and_selection(
        "", embedded="factworld", limit=config.limit, selection=config.selection, seed=config.seed
    )
    cases = [attribution_key(fact) for fact in facts]
    cases += [case_key(editor, fact) for editor in DEMO_EDITORS for fact in facts]
    sequences = _unedited(facts) + len(DEMO_EDITORS) * _scored(facts, ("probability", "argmax"))
    return _plan(config, cases, sequences + 2 * len(facts), len(cases))


def plan_evaluation(config: Any) -> Plan:
    """Of `mechedit evaluate`."""
    facts = load_facts(config.data, limit=config.limit, skip_malformed=config.skip_malformed)
    families = tuple(name for name in config.families if name != "ripple") or ("argmax",)
    cases = [case_key(config.editor, fact, config.mode) for fact in facts]
    if "ripple" in config.families:
        cases += [ripple_key(config.editor, fact) for fact in facts]
    more = ("Texts are generated, not scored.",) if {"generation", "ripple"} & {*config.families} else ()
    return _plan(config, cases, _unedited(facts) + _scored(facts, families), len(cases), more)


def plan_faithfulness(config: FaithfulnessConfig) -> Plan:
    """Of `mechedit.recipes.faithfulness.run_faithfulness`: a pass a fact, one for each set of neurons taken out."""
    facts, _ = chosen_facts(config)
    cases = [ablation_key(name, fact) for name in config.models for fact in facts]
    sets = 1 + len(KINDS) * len(config.ks) * (
        len(METHODS) - 1 + config.draws
    )  # random has draws, not a ranking
    one = SimpleNamespace(model=config.models[0], dtype=config.dtype)
    return _plan(
        one, cases, len(cases) * (1 + sets), 0, ("Each method's ranking runs the model a few times.",)
    )


def _plan(config: Any, cases: list[str], sequences: int, edits: int, more: tuple[str, ...] = ()) -> Plan:
    return Plan(
        cases=tuple(cases),
        sequences=sequences,
        edits=edits,
        weights_bytes=local_bytes(config.model, embedded=FOLDERS, dtype=config.dtype),
        notes=(EDITS, CHOICE, *more),
    )


def _scored(facts: Sequence[FactEdit], families: Sequence[str]) -> int:
    """The new and the true object behind every prompt of every fact (`measure`)."""
    return sum(2 * len(questions_of(fact, families)) for fact in facts)


def _unedited(facts: Sequence[FactEdit]) -> int:
    """Whether each fact is known, and its neighbours (`baseline`)."""
    near = sum(q.role == "neighborhood" for fact in facts for q in questions_of(fact, ("argmax",)))
    return len(facts) + 2 * near
