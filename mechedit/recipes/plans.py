"""What each experiment is going to do, made of the facts and case ids that the run itself walks; no model is loaded.

Counted are sequences that are scored (a prompt with the objects behind it, or one pass of an attribution), and edits.
Facts that the model does not know are not edited, so where there are some the run does less.
"""

from __future__ import annotations

from collections.abc import Sequence

from experiments.recipe import Plan
from experiments.weight_files import local_bytes
from mechedit.data import atlas
from mechedit.data.case_keys import ablation_key, anatomy_key, attribution_key, evaluation_key, ripple_key
from mechedit.data.facts import FactEdit
from mechedit.evaluation.questions import N_PASSAGES, FactQuestions
from mechedit.models.embedded import EMBEDDED, here
from mechedit.recipes.configurations import (
    COMPARED,
    CONTROLS,
    RANKINGS,
    AnatomyConfig,
    ComparisonConfig,
    DemoConfig,
    EvaluationConfig,
    FaithfulnessConfig,
)
from mechedit.recipes.splits import (
    ablated_facts,
    anatomy_facts,
    compared_facts,
    evaluated_facts,
    facts_and_selection,
    ripple_facts,
)

__all__ = ["plan_anatomy", "plan_comparison", "plan_demo", "plan_evaluation", "plan_faithfulness"]

EDITS = "An edit runs the model too, as often as its editor needs (steps of a search, prompts that are read)."
CHOICE = "So does choosing window, gate and the like on the selection."
DEMO_EDITORS = ("mega", *CONTROLS, "no_edit")


def plan_comparison(config: ComparisonConfig) -> Plan:
    """Of `mechedit.recipes.compare.compare`."""
    cases: list[str] = []
    sequences = 0
    splits = {seed: compared_facts(config, seed)[0] for seed in config.seeds}
    families = COMPARED
    for facts in splits.values():
        cases += [evaluation_key(editor, fact) for editor in config.editors for fact in facts]
        sequences += _unedited(facts, families) + len(config.editors) * (
            _scored(facts, families) + _read(len(facts))
        )
    facts = splits[config.seeds[0]]
    few = facts[: config.ablation_facts]
    cases += [evaluation_key(editor, fact) for editor in config.ablations for fact in few]
    sequences += _unedited(few, families) + len(config.ablations) * (_scored(few, families) + _read(len(few)))
    tested = ripple_facts(config, facts)
    cases += [ripple_key(editor, fact) for editor in config.editors for fact in tested]
    notes = ("RippleEdits' queries are generated, not scored.",) if tested else ()
    return _plan(config.model, config.dtype, cases, sequences, len(cases), notes)


def plan_anatomy(config: AnatomyConfig) -> Plan:
    """Of `mechedit.recipes.anatomy.run_anatomy`: a pass a fact, and one under each editor as set and made to fail."""
    facts, selection = anatomy_facts(config)
    splits = {"selection": selection, "fact": facts}
    cases = [anatomy_key(split, fact) for split, chosen in splits.items() for fact in chosen]
    edits = 2 * len(config.editors) * len(cases)
    return _plan(config.model, config.dtype, cases, len(facts) + 2 * len(cases) + edits, edits)


def plan_demo(config: DemoConfig) -> Plan:
    """Of `mechedit.recipes.demo.run_demo`; which facts another model than the embedded ones knows is not known yet."""
    notes: tuple[str, ...] = ()
    if config.model in EMBEDDED:
        facts, _ = facts_and_selection(
            "", embedded="factworld", limit=config.limit, selection=config.selection, seed=config.seed
        )
    else:
        facts = atlas.edits(config.limit, config.seed)
        notes = ("The facts stand for those that the model will turn out to know.",)
    cases = [attribution_key(fact) for fact in facts]
    cases += [evaluation_key(editor, fact) for editor in DEMO_EDITORS for fact in facts]
    families = ("probability", "argmax")
    each = _scored(facts, families) + _read(len(facts))
    sequences = _unedited(facts, families) + len(DEMO_EDITORS) * each
    return _plan(config.model, config.dtype, cases, sequences + 2 * len(facts), len(cases), notes)


def plan_evaluation(config: EvaluationConfig) -> Plan:
    """Of `mechedit.recipes.evaluate.run_evaluation`."""
    facts = evaluated_facts(config)[0]
    cases = [evaluation_key(config.editor, fact, config.mode) for fact in facts]
    if "ripple" in config.families:
        cases += [ripple_key(config.editor, fact) for fact in facts]
    notes = ("Texts are generated, not scored.",) if {"generation", "ripple"} & {*config.families} else ()
    sequences = _unedited(facts, config.scored) + _scored(facts, config.scored)
    sequences += _read(len(facts) if config.mode == "single" else 1)
    return _plan(config.model, config.dtype, cases, sequences, len(cases), notes)


def plan_faithfulness(config: FaithfulnessConfig) -> Plan:
    """Of `mechedit.recipes.faithfulness.run_faithfulness`: a pass a fact, one for each set of neurons taken out."""
    facts, _ = ablated_facts(config)
    cases = [ablation_key(model, fact) for model in config.models for fact in facts]
    sets = 2 * len(config.ks) * (len(RANKINGS) + config.draws)  # of neurons of the MLP, and of attention
    notes = ("Each method's ranking runs the model a few times.",)
    return _plan(config.models[0], config.dtype, cases, len(cases) * (2 + sets), 0, notes)


def _plan(
    model: str, dtype: str, cases: list[str], sequences: int, edits: int, notes: tuple[str, ...] = ()
) -> Plan:
    return Plan(
        cases=tuple(cases),
        sequences=sequences,
        edits=edits,
        weights_bytes=local_bytes(model, embedded=here(), dtype=dtype),
        notes=(EDITS, CHOICE, *notes),
    )


def _scored(facts: Sequence[FactEdit], families: Sequence[str]) -> int:
    """Every prompt of every fact, with the new and the true object behind it (`measure`)."""
    return sum(len({asked.prompt for asked in FactQuestions(fact).read_by(families)}) for fact in facts)


def _read(n_models: int) -> int:
    """The passages of running text that so many models read (`mechedit.evaluation.elsewhere`)."""
    return n_models * N_PASSAGES


def _unedited(facts: Sequence[FactEdit], families: Sequence[str]) -> int:
    """Whether each fact is known, what is to stay, and the running text (`baseline`)."""
    near = {asked.prompt for fact in facts for asked in FactQuestions(fact).to_stay(families)}
    return _read(1) + len({fact.rewrite_prompt for fact in facts}) + len(near)
