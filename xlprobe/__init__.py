"""Why better cross-lingual alignment of an encoder can fail to give better cross-lingual transfer.

XLM-R-family encoders are aligned on pairs of languages (by word, by sentence, by masked language modelling), fine-tuned
for a token-level or a sentence-level task, and measured: embedding distances, gradient similarity, gradient magnitude,
zero-shot scores. `load_encoder`, `align`, `finetune`, `distances`, `gradients` and `transfer_study` are the main road.

`import xlprobe` loads no other module; each name is imported when it is first used.

Source: "Why Better Cross-Lingual Alignment Fails for Better Cross-Lingual Transfer: Case of Encoders",
arXiv 2603.18863.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xlprobe.data.corpora import Bitext, Labelled
    from xlprobe.data.data_folder import DataFolder
    from xlprobe.data.tasks import Task
    from xlprobe.diagnose import Diagnosis, diagnose
    from xlprobe.encoders.encoder import Encoder, load_encoder
    from xlprobe.probes.distances import Distances, distances
    from xlprobe.probes.gradient_stream import Loss
    from xlprobe.probes.gradients import Gradients, gradients
    from xlprobe.training.alignment import align
    from xlprobe.training.finetune import TaskModel, finetune
    from xlprobe.transfer.file_lab import FileLab
    from xlprobe.transfer.laboratory import Laboratory
    from xlprobe.transfer.result import Study
    from xlprobe.transfer.study import StudyConfig, transfer_study
    from xlprobe.transfer.world_lab import WorldLab
else:  # unseen by type checkers, which would take any name for one of the package's

    def __getattr__(name: str) -> Any:
        if name in _MODULES:
            value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
            globals()[name] = value
            return value
        if name in _ROOMS:
            return import_module(f"{__name__}.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "Bitext",
    "DataFolder",
    "Diagnosis",
    "Distances",
    "Encoder",
    "FileLab",
    "Gradients",
    "Labelled",
    "Laboratory",
    "Loss",
    "Study",
    "StudyConfig",
    "Task",
    "TaskModel",
    "WorldLab",
    "align",
    "diagnose",
    "distances",
    "finetune",
    "gradients",
    "load_encoder",
    "transfer_study",
]

_MODULES = {
    "Bitext": "data.corpora",
    "DataFolder": "data.data_folder",
    "Diagnosis": "diagnose",
    "Distances": "probes.distances",
    "Encoder": "encoders.encoder",
    "FileLab": "transfer.file_lab",
    "Gradients": "probes.gradients",
    "Labelled": "data.corpora",
    "Laboratory": "transfer.laboratory",
    "Loss": "probes.gradient_stream",
    "Study": "transfer.result",
    "StudyConfig": "transfer.study",
    "Task": "data.tasks",
    "TaskModel": "training.finetune",
    "WorldLab": "transfer.world_lab",
    "align": "training.alignment",
    "diagnose": "diagnose",
    "distances": "probes.distances",
    "finetune": "training.finetune",
    "gradients": "probes.gradients",
    "load_encoder": "encoders.encoder",
    "transfer_study": "transfer.study",
}
_ROOMS = ("cli", "data", "encoders", "langworld", "probes", "recipes", "training", "transfer")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_ROOMS})


class _Face(ModuleType):
    """A package on which an imported submodule takes no public name: `xlprobe.diagnose` is always the function."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _MODULES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Face
