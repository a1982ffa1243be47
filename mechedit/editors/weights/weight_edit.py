"""A change of weights: data, written in place for the length of a block, and always undone bit for bit.

Every editor that changes weights computes a `WeightChange` and applies it here. The weights that it names are copied,
written to, and copied back however the block is left: the bits are those of before, and nested edits unwind in order.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mechedit.data.facts import FactEdit
from mechedit.data.records import edit_fields
from mechedit.editors.base import derive, lineage
from mechedit.editors.defaults import Tuned
from mechedit.models import weights
from mechedit.models.active import ActiveEdit, named, noted
from mechedit.models.hooked import HookedModel
from mechedit.models.saving import new_folder, save_pretrained
from reports.errors import InputError, first_line
from reports.parsing import parse

__all__ = [
    "EditedModel",
    "LowRank",
    "Replaced",
    "WeightChange",
    "WeightEditor",
    "low_rank",
    "weight_edit",
    "weight_name",
]

SCHEMA_VERSION = 1
RECORD, TENSORS = "change.json", "change.safetensors"


@dataclass(frozen=True, eq=False)
class LowRank:
    """W + left @ right, with left [rows, r] and right [r, columns] in the checkpoint's own layout of W.

    Added in fp32 and rounded once to the weight's dtype.
    """

    left: Tensor
    right: Tensor

    @property
    def shape(self) -> torch.Size:
        """Of the weight it belongs to."""
        return torch.Size((len(self.left), self.right.shape[1]))

    def write(self, weight: Tensor) -> None:
        """Changes `weight` in place."""
        wide = weight.float() if weight.itemsize < 4 else weight
        weight.copy_(wide + (self.left @ self.right).to(wide.device, wide.dtype))


@dataclass(frozen=True, eq=False)
class Replaced:
    """Another weight in the place of W, in the checkpoint's own layout."""

    value: Tensor

    @property
    def shape(self) -> torch.Size:
        """Of the weight it belongs to."""
        return self.value.shape

    def write(self, weight: Tensor) -> None:
        """Changes `weight` in place."""
        weight.copy_(self.value)


@dataclass(frozen=True, eq=False)
class WeightChange:
    """What a weight edit does: for each changed weight, by its name in the checkpoint, what is written to it, in order.

    `apply` takes the model as it is, and what `load` has read checks that it is the one that it was made for.

    Attributes:
        editor: Who made it.
        facts: What it edits.
        model_hash: `HookedModel.hash` of the model that it was made for.
        parts: The weights' names, and what is written to each.
        model: The name of that model ("" where it is not known).
        keys: By layer the facts' keys K [d_mlp, n], which AlphaEdit keeps out of the way of later edits; else nothing.
        settings: What the editor was set to and what it read (`mechedit.editors.settings`); {}: not known.
        file: Where it was read from; None for one that was made here.
    """

    editor: str
    facts: tuple[FactEdit, ...]
    model_hash: str
    parts: Mapping[str, tuple[LowRank | Replaced, ...]]
    model: str = ""
    keys: Mapping[int, Tensor] = dataclasses.field(default_factory=dict)
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    file: Path | None = None

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers whose weights it changes."""
        numbers = (re.search(r"(?:^|\.)(\d+)\.", name) for name in self.parts)
        return tuple(sorted({int(number[1]) for number in numbers if number}))

    @property
    def about(self) -> dict[str, Any]:
        """All but the weights, as plain data: what a folder says of the edit."""
        return {
            "editor": self.editor,
            "model": self.model,
            "model_hash": self.model_hash,
            "facts": [edit_fields(fact) for fact in self.facts],
            "settings": dict(self.settings),
        }

    def apply(self, model: HookedModel) -> AbstractContextManager[EditedModel]:
        """The model under this change, for the length of a block, in which `model` itself is edited too.

        Raises:
            InputError: The change was read from a folder, and made for another model.
        """
        if self.file is not None:
            self._check(model)
        return weight_edit(model, self)

    def _check(self, model: HookedModel) -> None:
        if self.model_hash != model.hash:
            raise InputError(
                f"change: {self.file} was made for {_called(self.model, self.model_hash)}, found "
                f"{_called(model.name, model.hash)}; load that model, in the same dtype, as it was before the edit"
            )

    def __repr__(self) -> str:
        facts = [(fact.rewrite_prompt, fact.target_new) for fact in self.facts]
        model = _called(self.model, self.model_hash)
        return f"WeightChange({named(self.editor, facts)}; {', '.join(self.parts)}; for {model})"

    def save(self, folder: str | Path) -> Path:
        """Writes the change alone, as `change.safetensors` and `change.json`; returns the folder.

        Raises:
            InputError: `folder` is not new and not empty, or cannot be written.
        """
        tensors: dict[str, Tensor] = {}
        rows: list[dict[str, str]] = []
        for name, parts in self.parts.items():
            for part in parts:
                for field in dataclasses.fields(part):
                    value = getattr(part, field.name).cpu().contiguous().clone()
                    tensors[f"{len(rows)}.{field.name}"] = value
                rows.append({"weight": name, "kind": "low_rank" if isinstance(part, LowRank) else "replaced"})
        tensors |= {f"keys.{layer}": keys.cpu().contiguous().clone() for layer, keys in self.keys.items()}
        record = {"kind": "weight_change", "schema_version": SCHEMA_VERSION, **self.about, "parts": rows}
        with new_folder(folder) as temporary:
            save_file(tensors, temporary / TENSORS)
            (temporary / RECORD).write_text(_written(record), encoding="utf-8")
        return Path(folder)

    @classmethod
    def load(cls, folder: str | Path, model: HookedModel | None = None) -> WeightChange:
        """Reads what `save` wrote; the model is checked when the change is applied, or at once where it is given.

        Args:
            folder: The folder.
            model: The very model that the change was made for, if it is to be checked now.

        Raises:
            InputError: A folder without a change, a damaged one, another schema, or another model.
        """
        file = Path(folder) / RECORD
        try:
            record: dict[str, Any] = parse(file.read_text(encoding="utf-8"))
            if record["kind"] != "weight_change" or record["schema_version"] != SCHEMA_VERSION:
                raise ValueError(f"schema {record['kind']} {record['schema_version']}")
            change = cls._read(record, Path(folder) / TENSORS, model)
        except FileNotFoundError as error:
            book = (
                "a book of edits, which EditBook.load reads"
                if (Path(folder) / "edits.json").is_file()
                else ""
            )
            missing = Path(str(error.filename)).name if error.filename else TENSORS
            raise InputError(
                f"change: expected {RECORD} and {TENSORS} in {folder}, found {book or f'no {missing}'}"
            ) from error
        except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
            reason = first_line(error)
            raise InputError(
                f"change: {file} is no weight change that this version reads ({reason})"
            ) from error
        if model is not None:
            change._check(model)
        return change

    @classmethod
    def _read(cls, record: dict[str, Any], file: Path, model: HookedModel | None) -> WeightChange:
        """The change of a record and its tensors; without the tensors where it is another model's than the given."""
        facts = tuple(FactEdit(**fact) for fact in record["facts"])
        about = (str(record["editor"]), facts, str(record["model_hash"]))
        name = str(record.get("model", ""))
        if model is not None and record["model_hash"] != model.hash:
            return cls(*about, {}, name, file=file.with_name(RECORD))
        tensors = load_file(file)
        if model is not None:
            tensors = {key: value.to(model.device) for key, value in tensors.items()}
        parts: dict[str, tuple[LowRank | Replaced, ...]] = {}
        for i, row in enumerate(record["parts"]):
            kind: type[LowRank] | type[Replaced] = LowRank if row["kind"] == "low_rank" else Replaced
            part = kind(**{field.name: tensors[f"{i}.{field.name}"] for field in dataclasses.fields(kind)})
            parts[row["weight"]] = (*parts.get(row["weight"], ()), part)
        keys = {int(key[5:]): value for key, value in tensors.items() if key.startswith("keys.")}
        settings = dict(record.get("settings", {}))
        return cls(*about, parts, name, keys, settings, file.with_name(RECORD))


class EditedModel(HookedModel):
    """A `HookedModel` under a weight change: the same interface, other weights. Made by `weight_edit`."""

    change: WeightChange
    #: The changed weights, and copies of them from before.
    replaced: list[tuple[Tensor, Tensor]]
    #: The hash of the weights before this change, where it is known.
    hash_before: str | None

    def save_pretrained(self, folder: str | Path) -> Path:
        """Writes the edited model as a checkpoint that plain `transformers` loads (`mechedit.models.saving`).

        Beside it `edit.json` says by which editor, with which settings, the facts of which model were edited, the first
        edit first.
        """
        edits = [edited.change.about for edited in reversed(edits_of(self))]
        record = {"kind": "edited_checkpoint", "schema_version": SCHEMA_VERSION, "edits": edits}
        return save_pretrained(self, folder, beside={"edit.json": _written(record)})


class WeightEditor(Tuned, ABC):
    """An editor that changes weights: it says by what (`change`)."""

    @abstractmethod
    def change(self, model: HookedModel, facts: FactEdit | Sequence[FactEdit]) -> WeightChange:
        """The edit as data; the model is left as it is."""

    def apply(
        self, model: HookedModel, facts: FactEdit | Sequence[FactEdit]
    ) -> AbstractContextManager[EditedModel]:
        """The model with the facts edited, for the length of the block, in which `model` itself is edited too."""
        return weight_edit(model, self.change(model, facts))


@contextlib.contextmanager
def weight_edit(model: HookedModel, change: WeightChange) -> Iterator[EditedModel]:
    """`model` with the change written into its weights, for the length of the block.

    Raises:
        InputError: The model has no such weight, or one of another shape; nothing is written then.
    """
    changed = _changed(model, change)
    digest = _known_hash(model)
    saved = [(weight, weight.clone()) for weight, _ in changed]
    facts = [(fact.rewrite_prompt, fact.target_new) for fact in change.facts]
    try:
        with torch.no_grad():
            for weight, parts in changed:
                for part in parts:
                    part.write(weight)
        edited = derive(EditedModel, model)
        edited.change, edited.replaced, edited.hash_before = change, saved, digest
        with noted(model.hf, ActiveEdit(named(change.editor, facts), in_weights=True)):
            yield edited
    finally:
        _restore(saved)
        if digest is not None:  # the bits are those of before, so is their hash
            model._hash = (_versions(model), digest)


def edits_of(model: HookedModel) -> list[EditedModel]:
    """The edited models that `model` was derived through, the last edit first."""
    return [edited for edited in lineage(model) if isinstance(edited, EditedModel)]


def origin(model: HookedModel) -> tuple[HookedModel, str]:
    """The model that all edits of `model` began with, and the hash of its weights before them."""
    *_, root = lineage(model)
    edits = edits_of(model)
    if not edits:
        return root, root.hash
    if edits[-1].hash_before is not None:
        return root, edits[-1].hash_before
    with unedited(model):
        return root, root.hash


@contextlib.contextmanager
def unedited(model: HookedModel) -> Iterator[None]:
    """The weights as they were before all weight edits of `model`, for the length of the block."""
    edits = edits_of(model)
    current = {id(weight): (weight, weight.clone()) for edited in edits for weight, _ in edited.replaced}
    try:
        for edited in edits:
            _restore(edited.replaced)
        yield
    finally:
        _restore(list(current.values()))


def low_rank(
    model: HookedModel, layer: int, *, rows: Tensor, columns: Tensor
) -> dict[str, tuple[LowRank, ...]]:
    """W_out(layer) + rows @ columns as a part of a change.

    Args:
        model: The model.
        layer: Whose W_out.
        rows: [d_mlp, r].
        columns: [r, d_model].
    """
    view = model.W_out(layer)
    name, weight = weight_name(model, view)
    straight = weight.stride() == view.stride()
    pair = (rows, columns) if straight else (columns.mT, rows.mT)
    return {name: (LowRank(*(side.detach().contiguous() for side in pair)),)}


def weight_name(model: HookedModel, view: Tensor) -> tuple[str, Tensor]:
    """Name and weight of the checkpoint that `view` (as `model.W_out(3)`) shares its memory with.

    Raises:
        InputError: `view` is a copy.
    """
    for name, weight in weights.checkpoint_weights(model.hf):
        if weight.data_ptr() == view.data_ptr():
            return name, weight.detach()
    raise InputError(
        f"view: expected a view of a weight of {model.name}, found a copy of shape {tuple(view.shape)}"
    )


def combine(changes: Sequence[Mapping[str, tuple[Any, ...]]]) -> dict[str, tuple[Any, ...]]:
    """Several parts, one after the other, as one.

    >>> combine([{"a": (1,)}, {"a": (2,), "b": (3,)}])
    {'a': (1, 2), 'b': (3,)}
    """
    total: dict[str, tuple[Any, ...]] = {}
    for parts in changes:
        for name, written in parts.items():
            total[name] = (*total.get(name, ()), *written)
    return total


def _written(record: Mapping[str, Any]) -> str:
    return json.dumps(record, indent=1, ensure_ascii=False) + "\n"


def _called(name: str, digest: str) -> str:
    """A model in an error's line, by its name and the beginning of its hash."""
    return f"{name or 'a model'} (hash {digest[:12]})"


def _changed(model: HookedModel, change: WeightChange) -> list[tuple[Tensor, tuple[LowRank | Replaced, ...]]]:
    named = dict(weights.checkpoint_weights(model.hf))
    for name, parts in change.parts.items():
        if name not in named:
            raise InputError(
                f"change: it was made for {_called(change.model, change.model_hash)}, found {model.name}, which has no "
                f"weight {name!r}"
            )
        if any(part.shape != named[name].shape for part in parts):
            shapes = ", ".join(str(tuple(part.shape)) for part in parts)
            raise InputError(
                f"change: it was made for {_called(change.model, change.model_hash)}, found {model.name}: expected "
                f"{tuple(named[name].shape)} for {name!r}, found {shapes}"
            )
    return [(named[name].detach(), parts) for name, parts in change.parts.items()]


def _restore(saved: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Copies everything back, to the end even if Ctrl-C is pressed meanwhile, which is then passed on."""
    interrupt: KeyboardInterrupt | None = None
    for weight, old in saved:
        while True:
            try:
                weight.copy_(old)
                break
            except KeyboardInterrupt as error:
                interrupt = error
    if interrupt is not None:
        raise interrupt


def _versions(model: HookedModel) -> tuple[int, ...]:
    return tuple(weight._version for _, weight in weights.checkpoint_weights(model.hf))


def _known_hash(model: HookedModel) -> str | None:
    """The model's hash, if it has been computed for the weights as they are."""
    return model._hash[1] if model._hash is not None and model._hash[0] == _versions(model) else None
