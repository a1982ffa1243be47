"""A whole anatomy study in a run folder: facts, editors by name, window, tables, page.

Steps:

1. the facts to edit, and others (about other subjects) to choose by: the window, and what an editor leaves to `select`;
2. `anatomy`, fact by fact into the run folder, so that a stopped run goes on;
3. the study as a result, a summary, and the page, which `reports` draws from the files alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from experiments.recipe import recorded
from experiments.runs import RunFolder, continued
from mechedit.anatomy.study import AnatomyStudy, anatomy
from mechedit.anatomy.tables import LEAST
from mechedit.data.facts import FactEdit, facts_hash
from mechedit.editors import Editor
from mechedit.editors.registry import select
from mechedit.evaluation.evaluate import known_facts
from mechedit.models.hooked import HookedModel
from mechedit.recipes.configurations import AnatomyConfig
from mechedit.recipes.editor_choice import named
from mechedit.recipes.splits import anatomy_facts
from reports import page
from reports.errors import InputError

__all__ = ["run_anatomy"]


def run_anatomy(
    model: HookedModel, config: AnatomyConfig, out: str | Path, *, progress: bool = True
) -> AnatomyStudy:
    """Runs the study into the folder `out`, goes on with it, or extends it to a larger `limit`.

    Raises:
        InputError: An editor is unknown, the model knows none of the facts, or `out` holds something else or a run
            with another configuration.
    """
    config = continued(config, out)
    editors = [named(model, name, (config.set or {}).get(name, {})) for name in config.editors]
    facts, selection = anatomy_facts(config)
    if not any(known_facts(model, facts)):
        raise InputError(f"facts: {model.name} knows none of the {len(facts)}, so there is nothing to edit")
    seeds = {"facts": config.seed, "selection": config.seed + 1, "bootstrap": config.seed}
    folder: dict[str, Any] = {
        "provenance": model.provenance(data=_data(config, facts, selection), seeds=seeds),
        "first": lambda limit: _data(config, *anatomy_facts(replace(config, limit=limit))),
    }
    RunFolder.check(out, recorded("anatomy", config), **folder)
    ready = [select(editor, model, selection) for editor in editors]
    run = RunFolder.open(out, recorded("anatomy", config), **folder)
    study = anatomy(
        model,
        facts,
        editors=ready,
        selection=selection,
        stand_ins=facts[: config.begun_with],
        top_k=config.top_k,
        seed=config.seed,
        run=run,
        progress=progress,
    )
    run.write_result(study, "anatomy")
    run.write_json("summary", _summary(config, study, ready))
    page.build(run.path)
    run.finish({"n": study.n, "answers": dict(zip(_keys(study), study.claims["answer"], strict=True))})
    return study


def _data(config: AnatomyConfig, facts: Sequence[FactEdit], selection: Sequence[FactEdit]) -> dict[str, Any]:
    """What the provenance says of the facts."""
    hashes = {"facts": facts_hash(facts), "selection": facts_hash(selection)}
    return {"source": config.data or "the embedded world", **hashes}


def _keys(study: AnatomyStudy) -> list[str]:
    return [
        f"{key}/{editor}" for key, editor in zip(study.claims["key"], study.claims["editor"], strict=True)
    ]


def _summary(config: AnatomyConfig, study: AnatomyStudy, editors: Sequence[Editor]) -> dict[str, Any]:
    """What the page says besides the tables."""
    left_out = [f"{count} facts were left out: {reason}." for reason, count in study.skipped.items()]
    return {
        "title": "The anatomy of an edit",
        "subtitle": f"{study.n} facts under {len(editors)} editors, success against failure",
        "model": config.model,
        "n": study.n,
        "window": list(study.window) if study.window else None,
        "editors": [],
        "notes": [
            *left_out,
            f"Most failures were made on purpose (the table of outcomes says how); an answer needs {LEAST} facts of "
            "each outcome.",
            "Pooled is the mean of the editors that have both outcomes, each weighing the same.",
            "Under an editor that steers the attention output, attention counts with the steering term, which the "
            "editor itself writes: its part is said in the evidence.",
        ],
        "not_done": [
            "Scores are static: each unit is added alone under a frozen norm; ablate it to know what it causes.",
            "Before and after have each their own scale of the final norm: a difference holds that change too.",
            "Every answer stands alone: no correction is made for asking several questions of several editors.",
            *(
                [
                    "The persons of the embedded world are invented: nothing here says what holds in a model of text."
                ]
                if not config.data
                else []
            ),
        ],
    }
