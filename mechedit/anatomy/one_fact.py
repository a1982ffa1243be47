"""One fact under every editor: outcome, and what changed in every layer, head and leading neuron.

For each fact, steps:

1. unedited: layer and head scores of the new and the old object, and the top neurons of both;
2. for each editor: the same of the edited model; whether its next token starts the new object, on the rewrite prompt
   (success) and on all paraphrases as well (strict);
3. the edited model's top neurons of the new object are scored in the unedited model, and the unedited model's top
   neurons of the old object in the edited one: exact scores on both sides.

A case is plain data, written to a run folder as it is. A fact that the unedited model does not know, or whose objects
start with the same token or with a bare space, is left out, with the reason: there is no old fact to overrule, or the
one pass that is read here does not tell the objects apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from experiments.cases import Case
from mechedit.anatomy.failures import AS_SET
from mechedit.attribution.scored_pass import LayerScores, ScoredPass
from mechedit.attribution.terms import KINDS
from mechedit.data.facts import FactEdit
from mechedit.editors import Editor
from mechedit.evaluation.evaluate import known_facts
from mechedit.models.deciding import decide, says_object
from mechedit.models.hooked import HookedModel

__all__ = ["OBJECTS", "Setting", "measure_fact", "settings_for"]

OBJECTS = ("new", "old")
NEW, OLD = 0, 1


@dataclass(frozen=True)
class Setting:
    """An editor under a label.

    Attributes:
        editor: What edits.
        name: Of the editor as set.
        label: "as set", or how it was made to fail.
    """

    editor: Editor
    name: str
    label: str = AS_SET


def settings_for(editors: Sequence[Editor], ways: Sequence[dict[str, Editor]], index: int) -> list[Setting]:
    """The settings that are run on the fact of this index: every editor as set, and made to fail in one way, in turn.

    Args:
        editors: As set.
        ways: For each of them, the ways to make it fail (`failures.weakened`).
        index: Of the fact.
    """
    chosen = []
    for editor, failing in zip(editors, ways, strict=True):
        chosen.append(Setting(editor, editor.name))
        if failing:
            label = list(failing)[index % len(failing)]
            chosen.append(Setting(failing[label], editor.name, label))
    return chosen


def measure_fact(model: HookedModel, fact: FactEdit, settings: Sequence[Setting], *, top_k: int) -> Case:
    """The case of one fact: skipped ("" or why), before, runs.

    Args:
        model: Unedited.
        fact: What is edited.
        settings: One run each.
        top_k: Neurons of each kind that are ranked.

    Raises:
        InputError: A target encodes to nothing.
    """
    targets, space = [fact.target_new, fact.target_true], fact.space
    ids = [model.continuation(fact.rewrite_prompt, t, space=space)[1].tolist() for t in targets]
    decided = decide(model.tokenizer, *ids)
    if decided.shared:
        return {"skipped": "both objects start with the same token", "before": {}, "runs": []}
    if decided.n_new > 1 or decided.n_old > 1:
        return {"skipped": "an object starts with a token without text", "before": {}, "runs": []}
    if not known_facts(model, [fact])[0]:
        return {"skipped": "the unedited model does not know it", "before": {}, "runs": []}
    before = ScoredPass(model, fact.rewrite_prompt, targets, space=space)
    state = _state(before)
    state["top"] = {name: _tops(before, target, top_k) for target, name in enumerate(OBJECTS)}
    runs = [_run(model, before, state, fact, setting, top_k) for setting in settings]
    return {"skipped": "", "before": state, "runs": runs}


def _run(
    model: HookedModel,
    before: ScoredPass,
    unedited: dict[str, Any],
    fact: FactEdit,
    setting: Setting,
    top_k: int,
) -> dict[str, Any]:
    with setting.editor.apply(model, [fact]) as edited:
        targets = [fact.target_new, fact.target_true]
        after = ScoredPass(edited, fact.rewrite_prompt, targets, space=fact.space)
        success = after.next_token == after.tokens[NEW]
        strict = success and _starts_everywhere(edited, fact)
        state, tops = _state(after), after.top(NEW, top_k)
        fallen = {}
        for kind in KINDS:
            units = [(layer, unit) for layer, unit, _ in unedited["top"]["old"][kind]]
            fallen[kind] = after.of(OLD, kind, units)
    # Directions are views of the weights: the unedited model is scored after the edit is undone.
    risen = {kind: before.of(NEW, kind, [unit for unit, _ in tops[kind]]) for kind in KINDS}
    neurons = {
        "new": {
            kind: [[*unit, was, now] for (unit, now), was in zip(tops[kind], risen[kind], strict=True)]
            for kind in KINDS
        },
        "old": {
            kind: [
                [layer, unit, was, now]
                for (layer, unit, was), now in zip(unedited["top"]["old"][kind], fallen[kind], strict=True)
            ]
            for kind in KINDS
        },
    }
    names = {"editor": setting.name, "setting": setting.label}
    return {**names, "success": success, "strict": strict, "after": state, "neurons": neurons}


def _starts_everywhere(model: HookedModel, fact: FactEdit) -> bool:
    """Whether the new object follows every paraphrase, as far as its tokens tell it from the old one."""
    prompts, new, old = fact.paraphrase_prompts, fact.target_new, fact.target_true
    return all(says_object(model, prompts, new, old, space=fact.space))


def _state(scored: ScoredPass) -> dict[str, Any]:
    by_object: dict[str, LayerScores] = {name: scored.layers(i) for i, name in enumerate(OBJECTS)}
    return {
        "layers": {name: scores.layers.to_dict("list") for name, scores in by_object.items()},
        "heads": {name: scores.heads["score"].tolist() for name, scores in by_object.items()},
        "logp": {name: scores.logp for name, scores in by_object.items()},
        "rest": {name: scores.rest for name, scores in by_object.items()},
    }


def _tops(scored: ScoredPass, target: int, k: int) -> dict[str, list[list[float]]]:
    return {
        kind: [[*unit, score] for unit, score in ranked] for kind, ranked in scored.top(target, k).items()
    }
