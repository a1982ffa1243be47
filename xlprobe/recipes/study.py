"""A transfer study as one configuration: encoder, material, plan and sizes; what `xlprobe study` and `run` do with it.

Steps of `run_study`: load the encoder, make the laboratory, run `transfer_study` into the folder, write its page; with
`trial` also the advice on held-out pairs, in the folder OUT-trial. The material is the recipe's: the
embedded languages (`StudyRecipe`) or files (`xlprobe.recipes.real_text.RealTextRecipe`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal

import pandas as pd

from experiments.checkpoints import progress_bar
from experiments.recipe import Plan, recorded
from experiments.weight_files import local_bytes
from reports.errors import InputError
from xlprobe.encoders.encoder import Encoder, load_encoder
from xlprobe.encoders.loading import EMBEDDED, check_encoder
from xlprobe.langworld.lexicon import LANGUAGES
from xlprobe.recipes.page import write_page
from xlprobe.training.alignment import ALIGNABLE
from xlprobe.training.conflict import AGGREGATORS, weights_of
from xlprobe.transfer.laboratory import LATER, TASKS, Laboratory, Sizes
from xlprobe.transfer.result import Study
from xlprobe.transfer.study import StudyConfig, case_ids, chosen, transfer_study
from xlprobe.transfer.trial import advice_trial
from xlprobe.transfer.world_lab import WorldLab

__all__ = ["Material", "StudyBase", "StudyRecipe", "checked", "plan_study", "run_study"]

Material = tuple[Laboratory, Callable[[], dict[str, Any]]]


@dataclass(frozen=True)
class StudyBase(StudyConfig, ABC):
    """A study's configuration with its encoder and its sizes.

    Attributes:
        encoder: A name, a folder or an id.
        device: As for `load_encoder`, and so are dtype and attention.
        seed: The laboratory's.
        trial: Also test the advice.
        sizes: How much text and training a study takes.
    """

    experiment: ClassVar[str]
    encoder: str = ""
    device: str = "auto"
    dtype: str = "float32"
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    seed: int = 0
    trial: bool = False
    sizes: Sizes = field(default_factory=Sizes)

    @property
    def plan(self) -> StudyConfig:
        """The configuration without encoder and sizes."""
        return StudyConfig(**{key.name: getattr(self, key.name) for key in fields(StudyConfig)})

    def load(self, encoder: str) -> Encoder:
        """The encoder, loaded as the recipe says."""
        return load_encoder(encoder, device=self.device, dtype=self.dtype, attention=self.attention)

    @abstractmethod
    def material(self, out: Path, *, progress: bool) -> Material:
        """The laboratory, and what gives the arguments of `write_page` on it once the study is done."""

    def accepts(self, pair: str) -> bool:
        """Whether the material has the pair."""
        return pair in self.available()[0]

    def lacks(self, pair: str, task: str) -> str:
        """Why the material has no such task on the pair; empty where it has."""
        return ""

    def read(self, pairs: Sequence[str], tasks: Sequence[str]) -> None:
        """Read the text that a study of these needs, so that its faults are known."""

    @abstractmethod
    def available(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """All pairs and all tasks of the material."""


@dataclass(frozen=True)
class StudyRecipe(StudyBase):
    """A study of the embedded languages."""

    experiment: ClassVar[str] = "study"
    encoder: str = "langworld"

    def material(self, out: Path, *, progress: bool) -> Material:
        """See `StudyBase`."""
        return WorldLab(self.load(self.encoder), self.sizes, seed=self.seed), dict

    def available(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """See `StudyBase`."""
        return tuple(f"source-{name}" for name in LANGUAGES if name != "source"), tuple(TASKS)


def run_study(
    recipe: StudyBase, out: str | Path, *, progress: bool = True
) -> tuple[Study, pd.DataFrame | None, Path]:
    """The study, the trial's frame (or None), and the page.

    Raises:
        InputError: As `transfer_study`, and for a trial without TorchJD.
    """
    checked(recipe)
    with progress_bar(shown=progress):
        laboratory, describe = recipe.material(Path(out), progress=progress)
    settings = recorded(recipe.experiment, recipe)
    sizes = asdict(laboratory.sizes)  # what the recipe leaves to the encoder's size is decided
    settings["sizes"] = {key: value for key, value in sizes.items() if value != LATER.get(key, ...)}
    study = transfer_study(laboratory, recipe.plan, out, progress=progress, recipe=settings)
    title = "What alignment does to transfer"
    report = write_page(study, out, model=repr(laboratory.encoder), title=title, **describe())
    trial = None
    if recipe.trial:
        trial = advice_trial(laboratory, study, f"{out}-trial", seeds=recipe.seeds, progress=progress)
    return study, trial, report


def checked(recipe: StudyBase) -> tuple[list[str], list[str], list[str]]:
    """Pairs, tasks and cases of the study, once all is refused that can be refused before an encoder is loaded.

    A dry run and a run both begin with it, so that they refuse the same.

    Raises:
        InputError: A pair, a task or an objective that is not there; text that cannot be read; a checkpoint that is no
            encoder; masked language modelling without an LM head; a trial without TorchJD.
    """
    known_pairs, known_tasks = recipe.available()
    pairs = chosen("pairs", recipe.pairs, known_pairs, recipe.accepts)
    tasks = chosen("tasks", recipe.tasks, known_tasks, known_tasks.__contains__)
    objectives = chosen("objectives", recipe.objectives, ALIGNABLE, ALIGNABLE.__contains__)
    if recipe.trial:
        weights_of(AGGREGATORS[0])  # a missing extra is an error before hours of work, not after
    has_head = not recipe.encoder or check_encoder(recipe.encoder, device=recipe.device, dtype=recipe.dtype)
    if not has_head and (masked := [name for name in objectives if name in ("mlm", "tlm")]):
        rest = [name for name in objectives if name not in masked] or ["sentence", "token"]
        raise InputError(
            f"objectives: {masked[0]} needs an LM head, which {recipe.encoder} does not have; expected some of "
            f"{', '.join(rest)}"
        )
    cases = case_ids(recipe, pairs, tasks, lacks=recipe.lacks)
    recipe.read(pairs, tasks)
    return pairs, tasks, cases


def plan_study(recipe: StudyBase) -> Plan:
    """The cases, and the sentences that training and gradients send through the encoder."""
    sizes = recipe.sizes
    pairs, tasks, cases = checked(recipe)
    left_out = [f"Left out, {reason}." for p in pairs for t in tasks if (reason := recipe.lacks(p, t))]
    aligned = sum(case.startswith("align-") for case in cases)
    tuned = (aligned + recipe.seeds) * len(tasks) * len(recipe.train or (None,))
    probed = sum(case.startswith("gradients-") for case in cases)
    sequences = aligned * sizes.align_steps * 2 * sizes.batch + tuned * sizes.finetune_steps * sizes.batch
    # two tasks of one side, two objectives of two
    sequences += probed * 6 * sizes.probe_batches * sizes.batch
    return Plan(
        cases=tuple(cases),
        sequences=sequences,
        edits=0,
        weights_bytes=local_bytes(recipe.encoder, embedded=EMBEDDED, dtype=recipe.dtype),
        notes=(
            *dict.fromkeys(left_out),
            "Counted are sentences of training and gradients; distances, scores and masked copies come on top.",
            "Training takes weights, gradients, two moments of Adam and a copy: about five times the weights.",
        ),
    )
