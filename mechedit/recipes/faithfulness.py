"""A whole faithfulness study in a run folder: models and facts by name, tables, page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.recipe import recorded
from experiments.runs import RunFolder
from mechedit.data.facts import FactEdit, facts_hash, load_facts
from mechedit.faithfulness.study import FaithfulnessStudy, faithfulness, provenance_of
from mechedit.models.hooked import HookedModel
from mechedit.models.loading import EMBEDDED
from mechedit.recipes.splits import facts_and_selection
from reports import page
from reports.errors import InputError

__all__ = ["FaithfulnessConfig", "run_faithfulness"]


@dataclass(frozen=True)
class FaithfulnessConfig:
    """What is studied: `limit` facts on each of `models`, the `ks` best neurons of each method ablated.

    mean_over: prompts of so many other facts are averaged, and ablated neurons set to that mean; 0: set to zero.
    data: a file of facts, or "" for the embedded world's own.
    """

    models: tuple[str, ...] = tuple(EMBEDDED)
    limit: int = 100
    ks: tuple[int, ...] = (1, 3, 10, 30, 100)
    draws: int = 5
    mean_over: int = 0
    data: str = ""
    seed: int = 0
    device: str = "auto"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.limit < 2 or self.mean_over < 0 or not self.models:
            raise InputError(
                "limit, mean_over, models: expected at least 2, 0 and one name, found "
                f"{self.limit}, {self.mean_over} and {list(self.models)}"
            )


def run_faithfulness(
    models: Sequence[HookedModel], config: FaithfulnessConfig, out: str | Path, *, progress: bool = True
) -> FaithfulnessStudy:
    """Runs the study into the folder `out`, or goes on with it; `models` are those of `config.models`.

    Errors: those of `faithfulness`, and `InputError` where `out` holds something else or another run.
    """
    facts, others = chosen_facts(config)
    prompts = [fact.rewrite_prompt for fact in others]
    data = {"source": config.data or "the embedded world", "facts": facts_hash(facts), "mean_over": prompts}
    run = RunFolder.open(
        out, recorded("faithfulness", config), provenance=provenance_of(models, data, seed=config.seed)
    )
    study = faithfulness(
        models,
        facts,
        ks=config.ks,
        draws=config.draws,
        mean_over=prompts,
        seed=config.seed,
        run=run,
        progress=progress,
    )
    run.write_result(study, "faithfulness")
    run.write_json("summary", _summary(config, study))
    page.build(run.path)
    run.finish({"n": study.n, "better": study.differences["better"].value_counts().to_dict()})
    return study


def chosen_facts(config: FaithfulnessConfig) -> tuple[list[FactEdit], list[FactEdit]]:
    """The facts that are studied, and those whose prompts are averaged."""
    if config.data and not config.mean_over:
        return load_facts(config.data, limit=config.limit), []
    facts, others = facts_and_selection(
        config.data,
        embedded=config.models[0],
        limit=config.limit,
        selection=max(1, config.mean_over),
        seed=config.seed,
    )
    return facts, others[: config.mean_over]


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
