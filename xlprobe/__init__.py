"""Why better cross-lingual alignment of an encoder can fail to give better cross-lingual transfer.

`xlprobe` is the home of the second study beside `mechedit`: XLM-R encoders, explicitly aligned on pairs of
languages (by word, by sentence, by masked language modelling), fine-tuned for a token-level or a
sentence-level task, and measured by embedding distances, gradient similarity and gradient magnitude.

Source: "Why Better Cross-Lingual Alignment Fails for Better Cross-Lingual Transfer: Case of Encoders",
arXiv 2603.18863.

`load_encoder`, `align`, `finetune`, `distances`, `gradients` and `transfer_study` are the main road.
"""

from xlprobe.alignment import align
from xlprobe.distances import distances
from xlprobe.encoder import Encoder, load_encoder
from xlprobe.finetune import finetune
from xlprobe.gradients import gradients
from xlprobe.transfer import transfer_study

__all__ = ["Encoder", "align", "distances", "finetune", "gradients", "load_encoder", "transfer_study"]
