"""Which hyper-parameters an editor takes where its user names none: by the model it is applied to.

An editor's fields are `AUTO` until `Tuned.ready` fills them from the editor's own table, by family:

- "gpt2-xl", "llama-2-7b": the published ones, recognised by their shape;
- "smollm2-135m": tuned on eight facts that it knows (`mechedit tune`), by S, recognised by its shape too;
- "factworld", "factworld-llama": the embedded models, tuned on facts that are never evaluated
  (`mechedit.evaluation.tune`);
- any other model: those of the published model it is more like (gated MLP: LLaMA2-7B, else GPT2-XL), with layers at the
  same relative depth. Nobody has tuned these: `untuned` says so, and so do the settings and notes of a run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from mechedit.models.embedded import EMBEDDED
from mechedit.models.hooked import HookedModel
from reports.errors import InputError

__all__ = ["AUTO", "Table", "Tuned", "family", "untuned"]

AUTO: Any = None  # a field that the model decides
Table = Mapping[str, Mapping[str, Any]]

# (layers, width, gated MLP) of the models that the papers, and this package, tuned for
SHAPES = {"gpt2-xl": (48, 1600, False), "llama-2-7b": (32, 4096, True), "smollm2-135m": (30, 576, True)}


def family(model: HookedModel) -> tuple[str, bool]:
    """The family of `model`, and whether it is one of it (or only like it, so that layers are scaled)."""
    embedded = model.source.removeprefix("embedded:")
    if embedded != model.source and embedded in EMBEDDED:
        return embedded, True
    shape = (model.shape.n_layers, model.shape.d_model, model.shape.gated)
    like = "llama-2-7b" if model.shape.gated else "gpt2-xl"
    exact = next((name for name, tuned in SHAPES.items() if shape == tuned), None)
    return exact or like, exact is not None


class Tuned:
    """An editor, a dataclass, whose `AUTO` fields are decided by the model; LAYERS names those that hold layers."""

    DEFAULTS: ClassVar[Table]
    LAYERS: ClassVar[tuple[str, ...]] = ()

    @property
    def needs_selection(self) -> bool:
        """Whether `select` has settings to choose: only MEGA and SAKE have any."""
        return False

    def ready(self, model: HookedModel) -> Self:
        """This editor with every `AUTO` field filled from DEFAULTS for `model`.

        Raises:
            InputError: A layer is outside of the model.
        """
        name, exact = family(model)
        chosen: dict[str, Any] = {}
        for field in dataclasses.fields(self):  # type: ignore[arg-type]  # every editor is a dataclass
            if getattr(self, field.name) is AUTO and field.name in self.DEFAULTS[name]:
                value = self.DEFAULTS[name][field.name]
                scaled = field.name in self.LAYERS and not exact
                chosen[field.name] = (
                    _scaled(value, SHAPES[name][0], model.shape.n_layers) if scaled else value
                )
        resolved: Self = dataclasses.replace(self, **chosen)  # type: ignore[type-var]
        for field_name in self.LAYERS:
            _require_layers(field_name, getattr(resolved, field_name), model.shape.n_layers)
        return resolved


def untuned(editor: object, model: HookedModel) -> str:
    """What a reader must know of settings that were found on another model; "" where there are none.

    >>> import mechedit as me
    >>> untuned(me.editors.ROME(), me.load_model("factworld")), untuned(me.editors.NoEdit(), me.load_model("factworld"))
    ('', '')
    """
    if not isinstance(editor, Tuned):
        return ""
    name, exact = family(model)
    taken = [
        field.name
        for field in dataclasses.fields(editor)  # type: ignore[arg-type]  # every editor is a dataclass
        if getattr(editor, field.name) is AUTO and field.name in editor.DEFAULTS[name]
    ]
    if exact or not taken:
        return ""
    return f"untuned for this model: {', '.join(taken)} as for {name}, layers at the same relative depth"


def _scaled(value: Any, of: int, to: int) -> Any:
    """A layer, or first and last layer, at the same relative depth.

    >>> _scaled(17, 48, 12), _scaled((13, 17), 48, 12)
    (4, (3, 4))
    """
    if isinstance(value, tuple):
        return tuple(_scaled(layer, of, to) for layer in value)
    return min(round(value / (of - 1) * (to - 1)), to - 1)


def _require_layers(name: str, value: Any, n_layers: int) -> None:
    first, last = value if isinstance(value, tuple) else (value, value)
    if not 0 <= first <= last < n_layers:
        raise InputError(f"{name}: expected 0 to {n_layers - 1}, first to last, found {value}")
