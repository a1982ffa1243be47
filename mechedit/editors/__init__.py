"""Knowledge editors: an edit is data, applied by a context manager and always undone."""

from mechedit.editors.base import Editor, NoEdit
from mechedit.editors.mega import MEGA
from mechedit.editors.steering import SteeredModel, SteeringEdit

__all__ = ["MEGA", "Editor", "NoEdit", "SteeredModel", "SteeringEdit"]
