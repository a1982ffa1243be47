"""Many edits on one model: a list that is kept, changed and saved, and put on a model as one.

A book is data. `put` and `remove` give another book; the edits of the others are the same objects, so their outputs
keep their bits. Saved as `edits.safetensors` (maps, centres) and `edits.json` (the rest, a schema version, the hash of
the model they were fitted on); never pickle. Loading runs no code, and a book goes on no other model.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import pandas as pd
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from experiments.checkpoints import digest
from mechedit.data.facts import FactEdit
from mechedit.data.records import EDIT_FIELDS, edit_fields
from mechedit.editors.steering.asked_gate import AskedGate, Gate, RelationSpace
from mechedit.editors.steering.attach import attach
from mechedit.editors.steering.gates import AlwaysOn, HiddenGate, SentenceGate, Whitening
from mechedit.editors.steering.relation_words import RelationWords
from mechedit.editors.steering.sentence_encoder import sentence_encoder
from mechedit.editors.steering.sites import SiteName
from mechedit.editors.steering.steer import SteeredModel, steer
from mechedit.editors.steering.steering import Steering
from mechedit.editors.steering.steering_edit import Following, Position, SteeringEdit
from mechedit.editors.steering.transport import AffineMap
from mechedit.models import weights
from mechedit.models.active import named
from mechedit.models.hooked import HookedModel
from mechedit.models.saving import new_folder
from reports.errors import InputError, IntegrityError
from reports.parsing import parse

__all__ = ["EditBook"]

SCHEMA_VERSION = 1
TENSORS, RECORD = "edits.safetensors", "edits.json"
MAP = ("mean", "basis", "matrix", "shift")


@dataclass(frozen=True, eq=False)
class EditBook:
    """Steering edits of one model, by the case ids of their facts.

    >>> import mechedit as me
    >>> model, facts = me.load_model("factworld"), me.factworld.edits(2)
    >>> mega = me.editors.MEGA(window=(5, 7), alpha=1.0, gate="always")
    >>> book = me.editors.EditBook.of(model, [mega.fit(model, fact) for fact in facts])
    >>> len(book), len(book.remove(facts[0].case_id))
    (2, 1)
    """

    edits: Mapping[str, SteeringEdit]
    model_hash: str

    @classmethod
    def of(cls, model: HookedModel, edits: Iterator[SteeringEdit] | list[SteeringEdit]) -> EditBook:
        """A book of edits that were fitted on `model`.

        Raises:
            InputError: A case id occurs twice.
        """
        book = cls({}, model.hash)
        for edit in edits:
            if str(edit.fact.case_id) in book.edits:
                raise InputError(f"edits: case_id {edit.fact.case_id!r} occurs twice; give each fact its own")
            book = book.put(edit)
        return book

    def __len__(self) -> int:
        return len(self.edits)

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers that its edits steer."""
        return tuple(sorted({layer for edit in self.edits.values() for layer in edit.layers}))

    def __repr__(self) -> str:
        facts = [(edit.fact.rewrite_prompt, edit.fact.target_new) for edit in self.edits.values()]
        return f"EditBook({named('steering', facts)}; for the model with hash {self.model_hash[:12]})"

    def put(self, edit: SteeringEdit) -> EditBook:
        """With this edit: a new one at the end, or, of a case id that is there, in the place of the old one."""
        return replace(self, edits={**self.edits, str(edit.fact.case_id): edit})

    def remove(self, case_id: int | str) -> EditBook:
        """Without this edit.

        Raises:
            InputError: There is none of this case id.
        """
        if str(case_id) not in self.edits:
            raise InputError(f"case_id: expected one of the book's {len(self)} edits, found {case_id!r}")
        return replace(self, edits={key: edit for key, edit in self.edits.items() if key != str(case_id)})

    def to_frame(self) -> pd.DataFrame:
        """One row an edit.

        Columns: case_id, subject, prompt, target_true, target_new, site, first, last (layer), rank, alpha, gate,
        threshold.
        """
        rows = []
        for key, edit in self.edits.items():
            layers, gate = edit.layers, edit.gate
            rows.append(
                {
                    "case_id": key,
                    **{
                        name: getattr(edit.fact, name)
                        for name in ("subject", "prompt", "target_true", "target_new")
                    },
                    "site": edit.site,
                    "first": layers[0] if layers else pd.NA,
                    "last": layers[-1] if layers else pd.NA,
                    "rank": max(
                        (m.basis.shape[1] for move in edit.moves.values() for m in move.maps.values()),
                        default=0,
                    ),
                    "alpha": edit.alpha,
                    "gate": _kind(gate),
                    "threshold": getattr(gate, "threshold", float("nan")),
                }
            )
        return pd.DataFrame(rows)

    # -- on a model ------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def apply(self, model: HookedModel) -> Iterator[SteeredModel]:
        """The hooked model under all edits, for the length of the block, in which `model` itself is edited too.

        Raises:
            InputError: The edits were fitted on another model.
        """
        _check_hash(self.model_hash, model.hash)
        with steer(model, list(self.edits.values())) as steered:
            yield steered

    @contextlib.contextmanager
    def attach(self, hf: PreTrainedModel, *, tokenizer: Any = None) -> Iterator[Steering]:
        """A plain `transformers` model under all edits: `with book.attach(hf): hf.generate(...)`.

        However prompts come in, what comes out is that of each prompt alone (`mechedit.editors.steering.attach`).

        Args:
            hf: The model.
            tokenizer: Its own; gates that read text need it.

        Raises:
            InputError: The edits were fitted on another model; in a pass, what cannot be served.
        """
        _check_hash(self.model_hash, digest(dict(weights.checkpoint_weights(hf))))
        with attach(hf, list(self.edits.values()), tokenizer=tokenizer) as steering:
            yield steering

    # -- on disk ---------------------------------------------------------------------------------------------

    def save(self, folder: str | Path) -> Path:
        """Writes the book into `folder` (made if absent, an older book there is replaced) and returns the path.

        Raises:
            InputError: The folder holds anything but a book, or cannot be written.
        """
        target = Path(folder)
        _check_target(target)
        tensors: dict[str, Tensor] = {}
        shared: dict[int, str] = {}
        rows = [_record(edit, f"{i}", tensors, shared) for i, edit in enumerate(self.edits.values())]
        record = {
            "kind": "edit_book",
            "schema_version": SCHEMA_VERSION,
            "model_hash": self.model_hash,
            "edits": rows,
        }
        text = json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        with new_folder(target, replace=True) as temporary:
            # A copy of each: edits may share a map, and safetensors refuses tensors that share their memory.
            copies = {name: tensor.contiguous().cpu().clone() for name, tensor in tensors.items()}
            save_file(copies, temporary / TENSORS)
            (temporary / RECORD).write_text(text, encoding="utf-8")
        return target

    @classmethod
    def load(cls, folder: str | Path) -> EditBook:
        """Reads a book that `save` wrote; the model is checked when the book is put on one.

        Raises:
            InputError: There is none.
            IntegrityError: It is damaged, or of another schema version.
        """
        path = Path(folder)
        if not (path / RECORD).is_file():
            change = (
                "a weight change, which WeightChange.load reads" if (path / "change.json").is_file() else ""
            )
            raise InputError(
                f"folder: expected a saved book of edits, found {change or f'no {RECORD}'} in {path}"
            )
        try:
            record = parse((path / RECORD).read_text(encoding="utf-8"))
            version = record.get("schema_version")
            if record.get("kind") != "edit_book" or version != SCHEMA_VERSION:
                raise IntegrityError(
                    f"{path}: expected an edit book of schema {SCHEMA_VERSION}, found {version!r}"
                )
            tensors = load_file(path / TENSORS)
            shared: dict[str, Any] = {}
            edits = [_edit(row, tensors, shared) for row in record["edits"]]
            model_hash = str(record["model_hash"])
        except (
            OSError,
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            SafetensorError,
        ) as error:
            raise IntegrityError(
                f"{path}: not readable as a book of edits ({type(error).__name__}: {error})"
            ) from error
        return cls({str(edit.fact.case_id): edit for edit in edits}, model_hash)


def _check_hash(expected: str, actual: str) -> None:
    if expected != actual:
        raise InputError(
            f"model: expected the one that the edits were fitted on (hash {expected[:12]}…), found {actual[:12]}…; "
            "fit them on this model, or load that one (its dtype counts too)"
        )


def _check_target(target: Path) -> None:
    if target.exists() and not target.is_dir():
        raise InputError(f"folder: expected a folder, found the file {target}; choose another name")
    foreign = (
        [f.name for f in sorted(target.iterdir()) if f.name not in (TENSORS, RECORD)]
        if target.exists()
        else []
    )
    if foreign:
        raise InputError(
            f"folder: expected an empty folder or a book of edits, found {foreign[0]!r} in {target}"
        )


def _kind(gate: Gate) -> str:
    if isinstance(gate, AskedGate):
        return f"subject named, relation asked, layer {gate.space.layer}"
    if isinstance(gate, HiddenGate):
        return f"{gate.distance}, {'last token' if gate.pool == 'last' else 'mean state'}, layer {gate.layer}"
    return f"sentence: {gate.model}" if isinstance(gate, SentenceGate) else "always"


# -- an edit as a record, its tensors aside -------------------------------------------------------------------


def _record(
    edit: SteeringEdit, name: str, tensors: dict[str, Tensor], shared: dict[int, str]
) -> dict[str, Any]:
    behind = {f"{name}.behind.{k}": following.maps for k, following in enumerate(edit.following)}
    for key, maps in {f"{name}.map": edit.maps, **behind}.items():
        for layer, fitted in maps.items():
            tensors |= {f"{key}.{layer}.{field}": getattr(fitted, field) for field in MAP}
    return {
        "name": name,
        "fact": edit_fields(edit.fact),
        "layers": sorted(edit.maps),
        "alpha": edit.alpha,
        "site": edit.site,
        "heads": {str(layer): list(heads) for layer, heads in edit.heads.items()},
        "position": edit.position,
        "following": [
            {"tokens": list(one.tokens), "layers": sorted(one.maps), "alpha": one.alpha}
            for one in edit.following
        ],
        "choice": dict(edit.choice),
        "gate": _gate_record(edit.gate, name, tensors, shared),
    }


def _gate_record(gate: Gate, name: str, tensors: dict[str, Tensor], shared: dict[int, str]) -> dict[str, Any]:
    if isinstance(gate, AlwaysOn):
        return {"kind": "always"}
    if isinstance(gate, AskedGate):
        return _asked_record(gate, name, tensors, shared)
    tensors[f"{name}.centres"] = gate.centres
    if isinstance(gate, SentenceGate):
        return {"kind": "sentence", "threshold": gate.threshold, "model": gate.model}
    record: dict[str, Any] = {"kind": "hidden", "threshold": gate.threshold, "layer": gate.layer}
    record |= {"distance": gate.distance, "pool": gate.pool, "whitening": None}
    if gate.whitening is not None:  # one for all edits: written once
        key = shared.setdefault(id(gate.whitening), f"whitening.{len(shared)}")
        tensors[f"{key}.basis"], tensors[f"{key}.scale"] = gate.whitening.basis, gate.whitening.scale
        record["whitening"] = {"name": key, "rest": gate.whitening.rest}
    return record


def _asked_record(
    gate: AskedGate, name: str, tensors: dict[str, Tensor], shared: dict[int, str]
) -> dict[str, Any]:
    space = gate.space
    key = shared.setdefault(id(space), f"relations.{len(shared)}")  # one for all edits: written once
    white = space.whitening
    tensors |= {f"{key}.basis": white.basis, f"{key}.scale": white.scale}
    tensors |= {f"{key}.points": space.points, f"{key}.relations": space.relations}
    tensors[f"{name}.centres"] = gate.centres
    return {
        "kind": "asked",
        "threshold": gate.threshold,
        "names": list(gate.names),
        "own": list(gate.own),
        "objects": [list(mention) for mention in gate.objects],
        "space": {
            "name": key,
            "layer": space.layer,
            "rest": white.rest,
            "relations": list(space.names),
            "width": space.width,
            "far": space.far,
            "words": {relation: dict(counts) for relation, counts in space.words.counts.items()},
        },
    }


def _asked_gate(
    row: Mapping[str, Any], name: str, tensors: Mapping[str, Tensor], spaces: dict[str, Any]
) -> AskedGate:
    said, key = row["space"], row["space"]["name"]
    if key not in spaces:
        white = Whitening(tensors[f"{key}.basis"], tensors[f"{key}.scale"], float(said["rest"]))
        spaces[key] = RelationSpace(
            layer=int(said["layer"]),
            whitening=white,
            names=tuple(str(relation) for relation in said["relations"]),
            points=tensors[f"{key}.points"],
            relations=tensors[f"{key}.relations"],
            width=float(said["width"]),
            far=float(said["far"]),
            words=RelationWords(
                {name: {str(w): int(n) for w, n in row.items()} for name, row in said["words"].items()}
            ),
        )
    return AskedGate(
        names=tuple(str(one) for one in row["names"]),
        centres=tensors[f"{name}.centres"],
        threshold=float(row["threshold"]),
        own=tuple(str(relation) for relation in row["own"]),
        objects=tuple(tuple(int(token) for token in mention) for mention in row["objects"]),
        space=spaces[key],
    )


def _edit(row: Mapping[str, Any], tensors: Mapping[str, Tensor], shared: dict[str, Any]) -> SteeringEdit:
    name = row["name"]

    def maps(key: str, layers: Sequence[int]) -> dict[int, AffineMap]:
        return {int(n): AffineMap(*(tensors[f"{key}.{n}.{field}"] for field in MAP)) for n in layers}

    for key, allowed in (("site", get_args(SiteName)), ("position", get_args(Position))):
        if row[key] not in allowed:
            raise ValueError(f"{key}: expected one of {', '.join(allowed)}, found {row[key]!r}")
    return SteeringEdit(
        fact=FactEdit(**{field: row["fact"][field] for field in EDIT_FIELDS if field in row["fact"]}),
        maps=maps(f"{name}.map", row["layers"]),
        gate=_gate(row["gate"], name, tensors, shared),
        alpha=float(row["alpha"]),
        site=row["site"],
        heads={int(layer): tuple(heads) for layer, heads in row["heads"].items()},
        position=row["position"],
        choice=row["choice"],
        following=tuple(
            Following(
                tuple(int(token) for token in one["tokens"]),
                maps(f"{name}.behind.{k}", one["layers"]),
                float(one["alpha"]),
            )
            for k, one in enumerate(row.get("following", ()))  # none in books of earlier versions
        ),
    )


def _gate(row: Mapping[str, Any], name: str, tensors: Mapping[str, Tensor], shared: dict[str, Any]) -> Gate:
    if row["kind"] == "always":
        return AlwaysOn()
    if row["kind"] == "asked":
        return _asked_gate(row, name, tensors, shared)
    centres, threshold = tensors[f"{name}.centres"], float(row["threshold"])
    if row["kind"] == "sentence":
        return SentenceGate(centres, threshold, row["model"], sentence_encoder(row["model"]))
    white = row["whitening"]
    if white is not None:
        key = white["name"]
        if key not in shared:
            shared[key] = Whitening(tensors[f"{key}.basis"], tensors[f"{key}.scale"], float(white["rest"]))
        white = shared[key]
    return HiddenGate(int(row["layer"]), centres, threshold, row["distance"], row["pool"], white)
