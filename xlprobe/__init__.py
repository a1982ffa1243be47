"""Why better cross-lingual alignment of an encoder can fail to give better cross-lingual transfer.

XLM-R-family encoders are aligned on pairs of languages (by word, by sentence, by masked language modelling), fine-tuned
for a token-level or a sentence-level task, and measured: embedding distances, gradient similarity, gradient magnitude,
zero-shot scores. `load_encoder`, `align`, `finetune`, `distances`, `gradients` and `transfer_study` are the main road.

Source: "Why Better Cross-Lingual Alignment Fails for Better Cross-Lingual Transfer: Case of Encoders",
arXiv 2603.18863.
"""

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
