"""One editor on the facts of a file, as a run: folder, results, summary, page."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from experiments.recipe import recorded
from experiments.runs import RunFolder, continued
from mechedit.data.facts import FactEdit, facts_hash
from mechedit.evaluation.evaluate import baseline, check_facts, evaluate
from mechedit.evaluation.result import ELSEWHERE, Evaluation
from mechedit.evaluation.ripple import RippleEvaluation, check_tests, ripple
from mechedit.models.hooked import HookedModel
from mechedit.recipes.configurations import MODES, EvaluationConfig
from mechedit.recipes.configured_model import load
from mechedit.recipes.editor_choice import chosen_editor, named_editor
from mechedit.recipes.one_edit import one_wording
from mechedit.recipes.splits import evaluated_facts
from reports import page
from reports.errors import InputError
from reports.parsing import parse

__all__ = ["run_evaluation"]

log = logging.getLogger(__name__)


def run_evaluation(
    config: EvaluationConfig, out: str | Path | None, *, progress: bool = True
) -> tuple[Evaluation, RippleEvaluation | None]:
    """Evaluates the editor, in the folder `out` if there is one.

    Returns:
        The evaluation, and that of RippleEdits' tests, or None where the family "ripple" is not wanted.

    Raises:
        InputError: Something cannot be evaluated, which is found before anything is written; and as `evaluate`.
    """
    facts, first = evaluated_facts(config)
    if "ripple" in config.families:
        check_tests(facts)
    model = load(config)
    begun = _begun(config, model, out)  # a wrong editor is refused before anything is measured or written
    if begun != config:
        config, (facts, first) = begun, evaluated_facts(begun)
    check_facts(model, facts, families=config.scored)
    references = _references(config)
    seeds = {"selection": config.seed, "generation": config.seed}
    folder: dict[str, Any] = {
        "provenance": model.provenance(data=_source(config, facts), seeds=seeds),
        "first": _first(config) if config.mode == "single" else None,
    }
    if out:
        RunFolder.check(out, recorded("evaluate", config), **folder)
    unedited = baseline(model, facts, families=config.scored, text=config.text)
    known = any(unedited.known)
    editor = chosen_editor(config, model, first, data=config.data) if known else named_editor(config, model)
    for line in one_wording(editor, facts) if known else ():
        log.warning("%s: %s", editor.name, line)
    run = RunFolder.open(out, recorded("evaluate", config), **folder) if out else None
    result = evaluate(
        model,
        editor,
        facts,
        families=config.scored,
        mode=config.mode,
        references=references,
        seed=config.seed,
        progress=progress,
        run=run,
        unedited=unedited,
    )
    ripples = None
    if "ripple" in config.families:
        ripples = ripple(model, editor, facts, progress=progress, run=run)
    if run is not None:
        _write(run, config, result, ripples)
    return result, ripples


def _begun(config: EvaluationConfig, model: HookedModel, out: str | Path | None) -> EvaluationConfig:
    """Whether the run in `out` was begun with fewer facts matters to an editor that chooses on those behind them."""
    if config.mode != "single" or not named_editor(config, model).needs_selection:
        return replace(config, begun_with=None)
    return continued(config, out) if out else config


def _source(config: EvaluationConfig, facts: Sequence[FactEdit]) -> dict[str, Any]:
    return {"source": config.data, "facts": facts_hash(facts)}


def _first(config: EvaluationConfig) -> Callable[[int], dict[str, Any]]:
    """What the provenance says of the facts under a smaller limit."""
    return lambda limit: _source(config, evaluated_facts(replace(config, limit=limit))[0])


def _write(
    run: RunFolder, config: EvaluationConfig, result: Evaluation, ripples: RippleEvaluation | None
) -> None:
    run.write_result(result, "evaluation")
    if ripples is not None:
        run.write_result(ripples, "ripple")
    run.write_json("summary", _summary(config, result, ripples))
    page.build(run.path)
    run.finish({"n_known": result.n_known, "n_total": result.n_total})


def _references(config: EvaluationConfig) -> dict[str, list[str]] | None:
    """The texts of --references: a JSON object, new object -> list of texts."""
    if config.references is None:
        return None
    try:
        references = parse(Path(config.references).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise InputError(f"references: expected a JSON file, found {config.references} ({error})") from error
    lists = references.values() if isinstance(references, dict) else [None]
    if not all(
        isinstance(texts, list) and texts and all(isinstance(t, str) for t in texts) for texts in lists
    ):
        raise InputError(f"references: {config.references}: expected an object, new object -> list of texts")
    return dict(references)


def _summary(
    config: EvaluationConfig, result: Evaluation, ripples: RippleEvaluation | None
) -> dict[str, Any]:
    """What the report reads: fractions as cells of its table, what has another unit or n as notes."""
    rows = result.summary().to_dict("records")
    cells = {
        row["metric"].lower(): {k: row[k] for k in ("value", "low", "high", "n")}
        for row in rows
        if row["metric"] not in ("GE", "RS") and not (row["metric"] in ELSEWHERE and row["n"] == 0)
    }
    notes = [f"n known {result.n_known} of {result.n_total}", *result.notes]
    notes += [
        f"{row['metric']} of the generated texts: {row['value']:.3f}{' bits' if row['metric'] == 'GE' else ''} "
        f"[{row['low']:.3f}, {row['high']:.3f}], n {row['n']}"
        for row in rows
        if row["metric"] in ("GE", "RS")
    ]
    if ripples is not None:
        counted = ", ".join(f"{outcome} {n}" for outcome, n in ripples.outcomes().items())
        notes.append(f"RippleEdits, outcomes of the facts: {counted}")
        notes += [
            f"{'RippleEdits' if row['family'] == 'ripple' else 'RippleEdits, read as SAKE does'}, {row['metric']}: "
            f"{row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}], n {row['n']} facts, {row['n_tests']} tests"
            for row in ripples.summary().to_dict("records")
            if row["n_tests"]
        ]
    return {
        "title": f"{config.editor} on {config.model}",
        "subtitle": f"{result.n_total} edits from {Path(config.data).name}, {MODES[config.mode]}",
        "model": config.model,
        "n": result.n_known,
        "editors": [{"name": config.editor, "label": config.editor, **cells}],
        "notes": notes,
        "not_done": ["Controls (no edit, gate alone, mean shift, random layers) are not part of this run."],
    }
