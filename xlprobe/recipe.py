"""A transfer study as one configuration: encoder, material, plan and sizes; what `xlprobe study` and `run` do with it.

Steps of `run_study`: load the encoder, make the laboratory, run `transfer_study` into the folder, write its page; with
`trial` also the advice on held-out pairs, in the sub folder's neighbour OUT-trial.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from experiments.checkpoints import local_bytes
from experiments.recipe import Plan, recorded
from xlprobe.encoder import EMBEDDED, load_encoder
from xlprobe.transfer import StudyConfig, case_ids, transfer_study
from xlprobe.world_lab import Sizes, WorldLab

if TYPE_CHECKING:
    import pandas as pd

    from xlprobe.encoder import Encoder
    from xlprobe.study import Study

__all__ = ["StudyRecipe", "plan_study", "run_study"]


@dataclass(frozen=True)
class StudyRecipe(StudyConfig):
    """`StudyConfig`, and on what: the encoder and the embedded languages' sizes. trial: also test the advice."""

    encoder: str = "langworld"
    device: str = "auto"
    dtype: str = "float32"
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    seed: int = 0
    trial: bool = False
    sizes: Sizes = field(default_factory=Sizes)

    @property
    def plan(self) -> StudyConfig:
        """What is crossed with what, alone."""
        return StudyConfig(**{one.name: getattr(self, one.name) for one in fields(StudyConfig)})


def run_study(
    recipe: StudyRecipe, out: str | Path, *, progress: bool = True
) -> tuple[Study, pd.DataFrame | None, Path]:
    """The study, the trial's frame (or None), and the page. Errors: as `transfer_study`."""
    from xlprobe.demo import write_page
    from xlprobe.trial import advice_trial

    encoder: Encoder = load_encoder(
        recipe.encoder, device=recipe.device, dtype=recipe.dtype, attention=recipe.attention
    )
    laboratory = WorldLab(encoder, recipe.sizes, seed=recipe.seed)
    study = transfer_study(laboratory, recipe.plan, out, progress=progress, recipe=recorded("study", recipe))
    report = write_page(study, out, model=repr(encoder), title="What alignment does to transfer")
    trial = None
    if recipe.trial:
        trial = advice_trial(laboratory, study, f"{out}-trial", seeds=recipe.seeds, progress=progress)
    return study, trial, report


def plan_study(recipe: StudyRecipe) -> Plan:
    """The cases, and the sentences that training and gradients send through the encoder."""
    from xlprobe.langworld.lexicon import LANGUAGES
    from xlprobe.world_lab import TASKS

    sizes = recipe.sizes
    pairs = list(recipe.pairs) or [f"source-{name}" for name in LANGUAGES if name != "source"]
    tasks = list(recipe.tasks) or list(TASKS)
    cases = case_ids(recipe, pairs, tasks)
    aligned = sum(case.startswith("align-") for case in cases)
    tuned = (aligned + recipe.seeds) * len(tasks)
    probed = sum(case.startswith("gradients-") for case in cases)
    sequences = aligned * sizes.align_steps * 2 * sizes.batch + tuned * sizes.finetune_steps * sizes.batch
    sequences += (
        probed * 6 * sizes.probe_batches * sizes.batch
    )  # two tasks of one side, two objectives of two
    return Plan(
        cases=tuple(cases),
        sequences=sequences,
        edits=0,
        weights_bytes=local_bytes(recipe.encoder, embedded=EMBEDDED, dtype=recipe.dtype),
        notes=(
            "Counted are sentences of training and gradients; distances, scores and masked copies come on top.",
            "Training takes weights, gradients, two moments of Adam and a copy: about five times the weights.",
        ),
    )
