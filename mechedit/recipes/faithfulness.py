"""A whole faithfulness study in a run folder: models and facts by name, tables, page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from experiments.recipe import recorded
from experiments.runs import RunFolder, continued
from mechedit.data.facts import FactEdit, facts_hash
from mechedit.faithfulness.study import FaithfulnessStudy, faithfulness, provenance_of
from mechedit.models.hooked import HookedModel
from mechedit.recipes.configurations import FaithfulnessConfig
from mechedit.recipes.splits import ablated_facts
from reports import page

__all__ = ["run_faithfulness"]


def run_faithfulness(
    models: Sequence[HookedModel], config: FaithfulnessConfig, out: str | Path, *, progress: bool = True
) -> FaithfulnessStudy:
    """Runs the study into the folder `out`, goes on with it, or extends it to a larger `limit`.

    Args:
        models: Those of `config.models`, in its order.
        config: What is studied.
        out: The run folder.
        progress: Whether bars are shown.

    Raises:
        InputError: `out` holds something else or another run; and as `faithfulness`.
    """
    config = continued(config, out)
    facts, averaged = ablated_facts(config)
    data = _data(config, facts, averaged)
    run = RunFolder.open(
        out,
        recorded("faithfulness", config),
        provenance=provenance_of(models, data, seed=config.seed),
        first=lambda limit: _data(config, *ablated_facts(replace(config, limit=limit))),
    )
    study = faithfulness(
        models,
        facts,
        ks=config.ks,
        draws=config.draws,
        mean_over=data["mean_over"],
        seed=config.seed,
        run=run,
        progress=progress,
    )
    run.write_result(study, "faithfulness")
    run.write_json("summary", _summary(config, study))
    page.build(run.path)
    run.finish({"n": study.n, "better": study.differences["better"].value_counts().to_dict()})
    return study


def _data(
    config: FaithfulnessConfig, facts: Sequence[FactEdit], averaged: Sequence[FactEdit]
) -> dict[str, Any]:
    """What the provenance says of the facts."""
    prompts = [fact.rewrite_prompt for fact in averaged]
    return {"source": config.data or "the embedded world", "facts": facts_hash(facts), "mean_over": prompts}


def _summary(config: FaithfulnessConfig, study: FaithfulnessStudy) -> dict[str, Any]:
    """What the page says besides the tables."""
    count = ", ".join(f"{n} facts on {name}" for name, n in study.n.items())
    left_out = [
        f"{name} does not know {n} of the facts; they were left out."
        for name, n in study.left_out.items()
        if n
    ]
    invented = (
        "The persons of the embedded world are invented: nothing here says what holds in a model of text."
    )
    return {
        "title": "Do the neurons that an attribution names carry the answer?",
        "subtitle": f"NLKA and its peers judged by one ablation: {count}",
        "model": ", ".join(config.models),
        "editors": [],
        "ablated": study.ablated,
        "notes": [
            *left_out,
            "Random sets have as many neurons of each layer as NLKA's: they know its layers and nothing else.",
            "Attribution patching is the gradient of the very log p that the ablation measures; direct logit "
            "attribution and NLKA see what a neuron writes to the last residual stream and not what later layers "
            "make of it.",
        ],
        "not_done": [
            "Neurons were ablated at the last position only; what they wrote at earlier positions stayed.",
            "Every comparison stands alone: no correction is made for asking several.",
            *([] if config.data else [invented]),
        ],
    }
