# ruff: noqa: E402 (what is imported below may be hidden)
"""Why better cross-lingual alignment of an encoder can fail to give better cross-lingual transfer.

XLM-R-family encoders are aligned on pairs of languages (by word, by sentence, by masked language modelling), fine-tuned
for a token-level or a sentence-level task, and measured: embedding distances, gradient similarity, gradient magnitude,
zero-shot scores. `load_encoder`, `align`, `finetune`, `distances`, `gradients` and `transfer_study` are the main road.

`import xlprobe` loads no other module; each name is imported when it is first used.

Source: "Why Better Cross-Lingual Alignment Fails for Better Cross-Lingual Transfer: Case of Encoders",
arXiv 2603.18863.
"""

from __future__ import annotations

from typing import TYPE_CHECKING


def _refuse_shadows() -> None:
    """Raises `ImportError` where files of the user's own hide the `experiments` or `reports` beside this package."""
    from importlib.util import find_spec
    from pathlib import Path

    for name in ("experiments", "reports"):
        spec = find_spec(name)
        if spec is None or spec.origin is None:
            continue  # not installed: the import itself says so
        if Path(spec.origin).resolve().parent != (Path(__file__).parent.parent / name).resolve():
            raise ImportError(
                f"{__name__}: {spec.origin} hides {__name__}'s own package {name!r}; rename it, or start Python in "
                "another folder"
            )


_refuse_shadows()

from experiments.face import lazy

if TYPE_CHECKING:
    from xlprobe.data.corpora import (
        Bitext,
        Labelled,
        dictionary_links,
        load_bitext,
        load_conllu,
        load_links,
        load_sib200,
    )
    from xlprobe.data.data_folder import DataFolder
    from xlprobe.data.formats import load_iob2, load_tags, load_texts
    from xlprobe.data.languages import LanguageFiles, LanguageTable
    from xlprobe.data.parallel import match_conllu
    from xlprobe.data.tasks import Task
    from xlprobe.diagnose import Diagnosis, diagnose
    from xlprobe.encoders.encoder import Encoder, load_encoder
    from xlprobe.probes.distances import Distances, distances
    from xlprobe.probes.gradient_stream import Loss
    from xlprobe.probes.gradients import Gradients, gradients
    from xlprobe.recipes.page import write_page
    from xlprobe.training.alignment import align, retrieval
    from xlprobe.training.finetune import Joint, TransferScores, finetune, finetune_seeds
    from xlprobe.training.loop import Training
    from xlprobe.training.task_model import TaskModel
    from xlprobe.transfer.file_lab import FileLab, FileSizes
    from xlprobe.transfer.laboratory import Laboratory, Sizes
    from xlprobe.transfer.result import Study
    from xlprobe.transfer.study import StudyConfig, transfer_study
    from xlprobe.transfer.world_lab import WorldLab

__all__ = [
    "Bitext",
    "DataFolder",
    "Diagnosis",
    "Distances",
    "Encoder",
    "FileLab",
    "FileSizes",
    "Gradients",
    "Joint",
    "Labelled",
    "Laboratory",
    "LanguageFiles",
    "LanguageTable",
    "Loss",
    "Sizes",
    "Study",
    "StudyConfig",
    "Task",
    "TaskModel",
    "Training",
    "TransferScores",
    "WorldLab",
    "align",
    "diagnose",
    "dictionary_links",
    "distances",
    "finetune",
    "finetune_seeds",
    "gradients",
    "load_bitext",
    "load_conllu",
    "load_encoder",
    "load_iob2",
    "load_links",
    "load_sib200",
    "load_tags",
    "load_texts",
    "match_conllu",
    "retrieval",
    "transfer_study",
    "write_page",
]

_NAMES = {
    "xlprobe.data.corpora": (
        "Bitext",
        "Labelled",
        "dictionary_links",
        "load_bitext",
        "load_conllu",
        "load_links",
        "load_sib200",
    ),
    "xlprobe.data.data_folder": ("DataFolder",),
    "xlprobe.data.formats": (
        "load_iob2",
        "load_tags",
        "load_texts",
    ),
    "xlprobe.data.languages": (
        "LanguageFiles",
        "LanguageTable",
    ),
    "xlprobe.data.parallel": ("match_conllu",),
    "xlprobe.data.tasks": ("Task",),
    "xlprobe.diagnose": (
        "Diagnosis",
        "diagnose",
    ),
    "xlprobe.encoders.encoder": (
        "Encoder",
        "load_encoder",
    ),
    "xlprobe.probes.distances": (
        "Distances",
        "distances",
    ),
    "xlprobe.probes.gradient_stream": ("Loss",),
    "xlprobe.probes.gradients": (
        "Gradients",
        "gradients",
    ),
    "xlprobe.recipes.page": ("write_page",),
    "xlprobe.training.alignment": (
        "align",
        "retrieval",
    ),
    "xlprobe.training.finetune": (
        "Joint",
        "TransferScores",
        "finetune",
        "finetune_seeds",
    ),
    "xlprobe.training.loop": ("Training",),
    "xlprobe.training.task_model": ("TaskModel",),
    "xlprobe.transfer.file_lab": (
        "FileLab",
        "FileSizes",
    ),
    "xlprobe.transfer.laboratory": (
        "Laboratory",
        "Sizes",
    ),
    "xlprobe.transfer.result": ("Study",),
    "xlprobe.transfer.study": (
        "StudyConfig",
        "transfer_study",
    ),
    "xlprobe.transfer.world_lab": ("WorldLab",),
}

if not TYPE_CHECKING:  # a type checker would take any name for one of the package's
    __getattr__, __dir__ = lazy(
        __name__, _NAMES, rooms=("data", "encoders", "langworld", "probes", "recipes", "training", "transfer")
    )
