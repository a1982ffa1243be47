"""The study: what alignment does to distances, gradients and zero-shot transfer, over pair × objective × task × seed.

Steps; each case is a file in the run folder, so that a stopped study goes on:

1. `none-SEED`: fine-tune the encoder as it is on each task, score it on every target language.
2. `align-PAIR-OBJECTIVE-SEED`: align on the pair, measure distances on held-out text, then as 1 on the pair's target
   language. The objective "shuffled" is `sentence` on pairs that do not belong together: the control. 1 and 2 train the
   whole model, its head alone, or each (`xlprobe.transfer.trained`).
3. `gradients-PAIR-OBJECTIVE-TASK`: both losses' gradients on the *unaligned* encoder, with all yardsticks.
4. Tables: change of score against `none` of the same seed, change of retrieval, predictors, the claims' answers.

The interval of a change holds two spreads: over test sentences (of the mean over seeds) and over seeds; normal, 95 %.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.cases import every_case, settings_digest
from experiments.forks import forked
from experiments.runs import RunFolder
from reports.errors import InputError
from reports.missing import explained
from xlprobe.encoders.encoder import Encoder
from xlprobe.probes.distances import distances
from xlprobe.probes.gradient_stream import Loss, Mean
from xlprobe.probes.gradients import gradients, mean_gradient
from xlprobe.training.cached_contrast import Vectors
from xlprobe.training.objectives import OBJECTIVES
from xlprobe.transfer.effects import effects_of, paired_differences
from xlprobe.transfer.laboratory import Laboratory, Score
from xlprobe.transfer.result import Study, table_of
from xlprobe.transfer.trained import beside, check_parts, score_key

__all__ = [
    "SHUFFLED",
    "StudyConfig",
    "case_ids",
    "chosen",
    "gaps",
    "transfer_study",
]

logger = logging.getLogger(__name__)

SHUFFLED = "shuffled"
#: Rises whenever the same study gives other numbers, so that cases of two versions are not mixed.
METHOD = 2
KEPT = 2**31  # bytes of mean gradients that cases share
_METRICS = ("cosine", "weak_retrieval", "strong_retrieval", "csls_retrieval", "cka")


@dataclass(frozen=True)
class StudyConfig:
    """What is crossed with what.

    Attributes:
        pairs: Language pairs; none means all that the laboratory has.
        objectives: Alignment objectives.
        tasks: Tasks; none means all that the laboratory has.
        seeds: The number of seeds.
        shuffled: Also align on pairs that do not belong together, the control.
        train: What fine-tuning trains, "all", "head" or both (the first is that of the cells); None: what the
            laboratory's sizes say.

    Raises:
        InputError: No seed, no objective, or another part to train.
    """

    pairs: tuple[str, ...] = ()
    objectives: tuple[str, ...] = OBJECTIVES
    tasks: tuple[str, ...] = ()
    seeds: int = 3
    shuffled: bool = True
    train: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        check_parts(self.train)
        if self.seeds < 1:
            raise InputError(f"seeds: expected at least 1, found {self.seeds}")
        if not self.objectives:
            raise InputError(f"objectives: expected some of {', '.join(OBJECTIVES)}, found none")


def transfer_study(
    laboratory: Laboratory,
    config: StudyConfig,
    out: str | Path,
    *,
    workers: int = 1,
    progress: bool = True,
    recipe: dict[str, Any] | None = None,
) -> Study:
    """Run the study into the folder `out` (or go on with it); its result, which is also saved there.

    Args:
        laboratory: The material.
        config: What is crossed with what.
        out: The run folder.
        workers: Processes that share the cases, each on one thread (on a CPU, and where processes can be forked); the
            numbers are the same for any number of them.
        progress: Show a progress bar.
        recipe: What config.toml is to say, so that the folder can be run again.

    Raises:
        InputError: A pair or task that the laboratory lacks, an objective for which a pair's text is not made, or `out`
            holds something else or a study with another configuration.
        TrainingError: A loss is not finite; finished cases are kept.

    >>> import tempfile
    >>> from xlprobe.encoders.encoder import load_encoder
    >>> from xlprobe.transfer.laboratory import Sizes
    >>> from xlprobe.transfer.world_lab import WorldLab
    >>> sizes = Sizes(16, 16, 8, 8, align_steps=1, finetune_steps=1, head_steps=1, probe_batches=2, batch=8)
    >>> laboratory = WorldLab(load_encoder("langworld", device="cpu"), sizes)
    >>> plan = StudyConfig(("source-half",), ("sentence",), ("topic",), seeds=1, shuffled=False)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     study = transfer_study(laboratory, plan, folder, progress=False)
    >>> study.cells[["pair", "objective", "task", "n"]].to_dict("records")
    [{'pair': 'source-half', 'objective': 'sentence', 'task': 'topic', 'n': 8}]
    """
    pairs, tasks = _chosen(laboratory, config)
    seeds = {str(seed): seed for seed in range(config.seeds)}
    facts = laboratory.encoder.provenance(data=laboratory.data, seeds=seeds)
    named = {key: value for key, value in asdict(config).items() if value is not None}
    settings = recipe or {"laboratory": laboratory.name, **named}
    run = RunFolder.open(out, settings, provenance=facts)
    keys = case_ids(config, pairs, tasks, lacks=laboratory.lacks)
    means = dict[str, Mean]()
    for gap in gaps(laboratory, pairs, tasks):
        logger.warning("left out: %s", gap)

    def make(i: int) -> dict[str, Any]:
        return _case(laboratory, keys[i], pairs, tasks, means, config.train, inner) | {"settings": methods[i]}

    methods = [_method(laboratory, config)] * len(keys)
    workers = workers if laboratory.encoder.device.type == "cpu" else 1
    inner = progress and workers < 2  # the bars of several processes would overwrite each other
    with forked(workers):
        every_case(run, keys, make, settings=methods, together=_shared, label="study", progress=progress)
    study = _gathered(run, laboratory, config, pairs, tasks)
    run.write_result(study, "study")
    return study


def _method(laboratory: Laboratory, config: StudyConfig) -> str:
    """What a case depends on besides the run's configuration; that of a study of one part is the one it was before."""
    pooling = laboratory.sizes.pooling
    options = [*([pooling] if pooling != "mean" else []), *([list(config.train)] if config.train else [])]
    return settings_digest("study", METHOD, *options)


def case_ids(
    config: StudyConfig,
    pairs: Sequence[str],
    tasks: Sequence[str],
    *,
    lacks: Callable[[str, str], str] = lambda pair, task: "",
) -> list[str]:
    """Every case of the study, in the order in which they are run: seed by seed, objective by objective.

    Args:
        config: What is crossed with what.
        pairs: The pairs.
        tasks: The tasks.
        lacks: Why a task is not studied on a pair; empty where it is.

    Raises:
        InputError: No task can be studied on any pair.
    """
    if not any(not lacks(pair, task) for pair in pairs for task in tasks):
        reasons = dict.fromkeys(lacks(pair, task) for pair in pairs for task in tasks)
        raise InputError(f"data: no task can be studied on any pair: {'; '.join(reasons)}")
    objectives = [*config.objectives, *([SHUFFLED] if config.shuffled else [])]
    cases = []
    for seed in range(config.seeds):
        cases.append(f"none-{seed}")
        for objective in objectives:
            cases += [f"align-{pair}-{objective}-{seed}" for pair in pairs]
            if seed == 0 and objective in config.objectives:
                cases += [f"gradients-{p}-{objective}-{t}" for p in pairs for t in tasks if not lacks(p, t)]
    return cases


def gaps(laboratory: Laboratory, pairs: Sequence[str], tasks: Sequence[str]) -> list[str]:
    """What the material does not allow, a sentence each pair and task."""
    return [
        f"{task} on {pair}: {reason}"
        for pair in pairs
        for task in tasks
        if (reason := laboratory.lacks(pair, task))
    ]


def _chosen(laboratory: Laboratory, config: StudyConfig) -> tuple[list[str], list[str]]:
    pairs = chosen("pairs", config.pairs, laboratory.pairs, laboratory.accepts)
    tasks = chosen("tasks", config.tasks, laboratory.tasks, laboratory.tasks.__contains__)
    for pair in pairs:
        for objective in config.objectives:
            laboratory.check(pair, objective)
    return pairs, tasks


def chosen(
    what: str, wanted: Sequence[str], known: Sequence[str], accepts: Callable[[str], bool]
) -> list[str]:
    """What is wanted, or all that is known where nothing is.

    Raises:
        InputError: Something that is not accepted, or that is named twice.
    """
    for name in wanted:
        if not accepts(name):
            raise InputError(f"{what}: expected some of {', '.join(known)}, found {name!r}")
        if wanted.count(name) > 1:
            raise InputError(f"{what}: expected each once, found {name!r} twice")
    return list(wanted) or list(known)


# -- cases ----------------------------------------------------------------------------------------------------


def _pair_of(case: str) -> str:
    """The pair of align-PAIR-OBJECTIVE-SEED and gradients-PAIR-OBJECTIVE-TASK."""
    return "-".join(case.split("-")[1:-2])


def _shared(case: str) -> str:
    """A pair's gradients go to one process, because they share yardsticks."""
    return f"gradients-{_pair_of(case)}" if case.startswith("gradients-") else case


def _case(
    laboratory: Laboratory,
    case: str,
    pairs: Sequence[str],
    tasks: Sequence[str],
    means: dict[str, Mean],
    parts: Sequence[str] | None,
    progress: bool,
) -> dict[str, Any]:
    kind, *names = case.split("-")
    if kind == "none":
        return _none(laboratory, int(names[0]), pairs, tasks, parts or (None,), progress)
    if kind == "align":
        seed = int(names[-1])
        return _align(laboratory, _pair_of(case), names[-2], seed, tasks, parts or (None,), progress)
    return _gradients(laboratory, _pair_of(case), names[-2], names[-1], means, progress)


def _none(
    laboratory: Laboratory,
    seed: int,
    pairs: Sequence[str],
    tasks: Sequence[str],
    parts: Sequence[Any],
    progress: bool,
) -> dict[str, Any]:
    options: dict[str, Any] = {"seed": seed, "progress": progress}
    scores, measured = {}, {}
    for pair in pairs if seed == 0 else ():
        measured[f"{pair}/pretrained"] = _distances(laboratory, laboratory.encoder, pair, progress)
    learned = [(laboratory.source(pair), pair, task) for task in tasks for pair in pairs]
    learned = [row for row in learned if not laboratory.lacks(row[1], row[2])]
    wanted = dict.fromkeys((task, source) for source, _, task in learned)
    for (task, source), part in itertools.product(wanted, parts):
        model = laboratory.finetuned(laboratory.encoder, task, source=source, train=part, **options)
        for pair in [pair for at, pair, of in learned if (at, of) == (source, task)]:
            key = score_key(pair, task, part, parts[0])
            scores[key] = asdict(laboratory.score(model, task, pair, progress=progress))
            if seed == 0 and part == parts[0]:
                stage = f"{pair}/fine-tuned on {task}"
                measured[stage] = _distances(laboratory, model.encoder, pair, progress)
    return {"scores": scores, "distances": measured}


def _align(
    laboratory: Laboratory,
    pair: str,
    objective: str,
    seed: int,
    tasks: Sequence[str],
    parts: Sequence[Any],
    progress: bool,
) -> dict[str, Any]:
    control = objective == SHUFFLED
    aligned = laboratory.aligned(
        pair, "sentence" if control else objective, seed=seed, shuffled=control, progress=progress
    )
    measured = {f"{pair}/aligned": _distances(laboratory, aligned, pair, progress)}
    options: dict[str, Any] = {"source": laboratory.source(pair), "seed": seed, "progress": progress}
    scores = {}
    wanted = [task for task in tasks if not laboratory.lacks(pair, task)]
    for task, part in itertools.product(wanted, parts):
        model = laboratory.finetuned(aligned, task, train=part, **options)
        key = score_key(pair, task, part, parts[0])
        scores[key] = asdict(laboratory.score(model, task, pair, progress=progress))
        if seed == 0 and part == parts[0]:
            stage = f"{pair}/aligned, then fine-tuned on {task}"
            measured[stage] = _distances(laboratory, model.encoder, pair, progress)
    return {"scores": scores, "distances": measured}


def _distances(laboratory: Laboratory, encoder: Encoder, pair: str, progress: bool) -> list[dict[str, Any]]:
    pooling, held_out = laboratory.sizes.pooling, laboratory.held_out(pair)
    measured = distances(encoder, held_out, metrics=_METRICS, pooling=pooling, progress=progress)
    rows: list[dict[str, Any]] = measured.layers.to_dict("records")
    return rows


def _gradients(
    laboratory: Laboratory, pair: str, objective: str, task: str, means: dict[str, Mean], progress: bool
) -> dict[str, Any]:
    encoder = laboratory.encoder
    source = laboratory.source(pair)
    target = partial(laboratory.task_loss, encoder, task, pair=pair, source=source)
    shuffled = partial(laboratory.alignment_loss, encoder, pair, objective, shuffled=True)
    probe = gradients(
        encoder,
        task=laboratory.task_loss(encoder, task, source=source, progress=progress),
        alignment=laboratory.alignment_loss(encoder, pair, objective),
        target=_yardstick(encoder, f"{task} in {pair}", target, means),
        shuffled=_yardstick(encoder, f"{objective} on {pair}", shuffled, means),
        progress=progress,
    )
    cells = probe.cells.astype({"layer": "float64"})
    cells["layer"] = cells["layer"].where(cells["layer"].notna(), -1)
    return {
        "cells": cells.to_dict("records"),
        "first_order": probe.first_order.to_dict("records"),
        "n": probe.n,
        "loss": probe.loss,
    }


def _yardstick(encoder: Encoder, name: str, make: Callable[[], Loss], means: dict[str, Mean]) -> Mean:
    """The mean gradient of a loss with which several cases are compared; kept while all of them fit into `KEPT`."""
    if name in means:
        return means[name]
    mean = mean_gradient(encoder, make())
    size = mean.flat.numel() * mean.flat.element_size()
    while means and (len(means) + 1) * size > KEPT:
        means.pop(next(iter(means)))
    if size <= KEPT:
        means[name] = mean
    return mean


# -- tables ---------------------------------------------------------------------------------------------------


def _gathered(
    run: RunFolder, laboratory: Laboratory, config: StudyConfig, pairs: Sequence[str], tasks: Sequence[str]
) -> Study:
    cases = run.cases()
    objectives = [*config.objectives, *([SHUFFLED] if config.shuffled else [])]
    parts = config.train or (laboratory.sizes.tuned,)
    score_rows, distance_rows = [], []
    for seed in range(config.seeds):
        none = cases[f"none-{seed}"]
        for key, rows in none["distances"].items():
            distance_rows += _tagged(rows, key, "none", seed)
        for pair in pairs:
            for objective in objectives:
                case = cases[f"align-{pair}-{objective}-{seed}"]
                for key, rows in case["distances"].items():
                    distance_rows += _tagged(rows, key, objective, seed)
                for task, part in itertools.product(tasks, parts):
                    if (name := score_key(pair, task, part, parts[0])) not in case["scores"]:
                        continue
                    with_, without = (Score(**c["scores"][name]) for c in (case, none))
                    score_rows.append(
                        {
                            "pair": pair,
                            "objective": objective,
                            "task": task,
                            "seed": seed,
                            "train": part,
                            "score": with_.accuracy,
                            "baseline": without.accuracy,
                            "delta": with_.accuracy - without.accuracy,
                            "macro_f1": with_.macro_f1,
                            "n": len(with_.hits),
                            "by_sentence": paired_differences(with_, without),
                        }
                    )
    gradient_rows, steps = _gradient_rows(cases, pairs, config.objectives, tasks)
    scores = pd.DataFrame(score_rows)
    return table_of(
        laboratory=laboratory.name,
        layer=Vectors(laboratory.sizes.layer).at(laboratory.encoder),
        seeds=config.seeds,
        scores=scores.drop(columns="by_sentence"),
        effects=beside({part: effects_of(scores[scores["train"] == part]) for part in parts}),
        distances=pd.DataFrame(distance_rows),
        gradients=gradient_rows,
        first_order=steps,
        provenance=run.provenance,
    )


def _tagged(rows: list[dict[str, Any]], key: str, objective: str, seed: int) -> list[dict[str, Any]]:
    pair, stage = key.split("/", 1)
    return [{"pair": pair, "objective": objective, "stage": stage, "seed": seed, **row} for row in rows]


def _gradient_rows(
    cases: dict[str, dict[str, Any]], pairs: Sequence[str], objectives: Sequence[str], tasks: Sequence[str]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    rows, steps = [], []
    for pair in pairs:
        for objective in objectives:
            for task in tasks:
                case = cases.get(f"gradients-{pair}-{objective}-{task}")
                if case is None:
                    continue
                names = {"pair": pair, "objective": objective, "task": task}
                n = {f"n_{name}": count for name, count in case["n"].items()}
                rows += [{**names, **row, **n} for row in case["cells"]]
                steps += [{**names, **row} for row in case["first_order"]]
    frame = explained(pd.DataFrame(rows), {})  # cases of an earlier version do not say why
    frame["layer"] = frame["layer"].astype("int64")  # -1: summed over layers
    return frame, pd.DataFrame(steps)
