"""Knowledge editors: an edit is data, applied by a context manager and always undone."""

from mechedit.editors.base import Editor, NoEdit
from mechedit.editors.ike import IKE, PromptedModel
from mechedit.editors.registry import NAMES, by_name
from mechedit.editors.steering.edit_book import EditBook
from mechedit.editors.steering.mega import MEGA
from mechedit.editors.steering.sake import SAKE
from mechedit.editors.steering.steer import SteeredModel
from mechedit.editors.steering.steering_edit import SteeringEdit
from mechedit.editors.weights.ft import FT, FTL
from mechedit.editors.weights.lora import LoRA
from mechedit.editors.weights.memit import MEMIT, AlphaEdit
from mechedit.editors.weights.rome import ROME
from mechedit.editors.weights.weight_edit import EditedModel, WeightChange

__all__ = [
    "FT",
    "FTL",
    "IKE",
    "MEGA",
    "MEMIT",
    "NAMES",
    "ROME",
    "SAKE",
    "AlphaEdit",
    "EditBook",
    "EditedModel",
    "Editor",
    "LoRA",
    "NoEdit",
    "PromptedModel",
    "SteeredModel",
    "SteeringEdit",
    "WeightChange",
    "by_name",
]
