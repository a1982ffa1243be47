"""The tables of the atlas as they stand in their files: relations, facts and other names.

Steps of `load`:

1. read every TOML file of a folder: one a relation, named after it, and `entities.toml` with the other names;
2. refuse what is not as written below: an unknown or missing key, another type, a subject that comes twice;
3. check that the relations that hops lead to are there and start where the first one ends.

A relation's file:

- `subject_kind`, `object_kind`: what the two ends are ("country", "city"); a name names one thing of one kind.
- `templates`: the words that editors may be fitted on; the first one is the rewrite prompt. `held_out`: the words that
  only an evaluation asks. Each has one `{}`, and the object stands right behind it.
- `[facts]` (subject = object), or `[groups]` (object = its subjects) where many subjects share one object.
- `[left_out]`: subjects that the relation has no one right object for, and why.
- `phrases`, `phrases_held_out`: descriptions of the object by way of the subject ("the country where {} lies").
  `hops`: the relations that are asked about an object so described.
- `symmetric`: where a is b, b is a.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from mechedit.data.records import check_text, check_texts, shown
from reports.errors import InputError

__all__ = ["Atlas", "Fact", "RelationTable", "load", "shipped_atlas"]

_ENTITIES = "entities"
_NEEDED = {"subject_kind", "object_kind", "templates", "held_out"}
_KNOWN = _NEEDED | {"facts", "groups", "left_out", "phrases", "phrases_held_out", "hops", "symmetric"}


@dataclass(frozen=True)
class Fact:
    """What is true: `object` stands behind the relation's templates about `subject`.

    Attributes:
        relation: name of the relation.
        subject: name of the subject, as it stands inside a sentence ("the Netherlands").
        object: name of the object, bare ("Amsterdam").

    Example:
        >>> Fact("capital", "the Netherlands", "Amsterdam").object
        'Amsterdam'
    """

    relation: str
    subject: str
    object: str


@dataclass(frozen=True)
class RelationTable:
    """One kind of fact, the words that ask for it, and all that the atlas knows of it.

    Attributes:
        name: the relation's name, which is its file's.
        subject_kind: what its subjects are.
        object_kind: what its objects are.
        templates: for fitting; the first one is the rewrite prompt.
        held_out: templates that nothing may be fitted on.
        objects: subject -> object.
        left_out: subject -> why the relation has no one right object for it.
        phrases: descriptions of the object with `{}` for the subject, for fitting.
        phrases_held_out: descriptions that nothing may be fitted on.
        hops: names of the relations that are asked about an object so described.
        symmetric: whether the object's own object is the subject.

    Example:
        >>> from mechedit.data import atlas
        >>> capital = atlas.relation("capital")
        >>> capital.templates[0], capital.objects["France"]
        ('The capital of {} is the city of', 'Paris')
    """

    name: str
    subject_kind: str
    object_kind: str
    templates: tuple[str, ...]
    held_out: tuple[str, ...]
    objects: Mapping[str, str]
    left_out: Mapping[str, str]
    phrases: tuple[str, ...] = ()
    phrases_held_out: tuple[str, ...] = ()
    hops: tuple[str, ...] = ()
    symmetric: bool = False

    def ask(self, subject: str) -> str:
        """The rewrite prompt about `subject`.

        Args:
            subject: a name, of the atlas or not.

        Returns:
            The first template with the subject in its place.

        Example:
            >>> from mechedit.data import atlas
            >>> atlas.relation("capital").ask("France")
            'The capital of France is the city of'
        """
        return self.templates[0].replace("{}", subject)

    def subjects_of(self, value: str) -> tuple[str, ...]:
        """The subjects whose object is `value`.

        Args:
            value: name of an object.

        Returns:
            The subjects' names, in the order of the file; none for an object that the relation does not have.

        Example:
            >>> from mechedit.data import atlas
            >>> atlas.relation("currency").subjects_of("krone")
            ('Denmark', 'Norway')
        """
        return tuple(subject for subject, other in self.objects.items() if other == value)


@dataclass(frozen=True)
class Atlas:
    """All relations of a folder, and the other names of what is in them.

    Attributes:
        relations: name -> relation, by name.
        entities: kind -> name -> other names; a name that has none need not be here.

    Example:
        >>> from mechedit.data import atlas
        >>> world = atlas.load()
        >>> world.names("Beijing")
        ('Beijing', 'Peking')
    """

    relations: Mapping[str, RelationTable]
    entities: Mapping[str, Mapping[str, tuple[str, ...]]]

    @cached_property
    def aliases(self) -> dict[str, tuple[str, ...]]:
        """Name -> other names, of all kinds together."""
        return {name: others for names in self.entities.values() for name, others in names.items()}

    def names(self, name: str) -> tuple[str, ...]:
        """All names of what `name` names.

        Args:
            name: the name in the tables.

        Returns:
            The name itself, then its other names.

        Example:
            >>> Atlas({}, {"city": {"Rome": ("Roma",)}}).names("Rome")
            ('Rome', 'Roma')
        """
        return (name, *self.aliases.get(name, ()))

    def relation(self, name: str) -> RelationTable:
        """The relation of this name.

        Args:
            name: a relation's name.

        Returns:
            The relation.

        Raises:
            InputError: if there is none of this name.

        Example:
            >>> from mechedit.data import atlas
            >>> atlas.load().relation("continent").object_kind
            'continent'
        """
        if name not in self.relations:
            raise InputError(f"relation: expected one of {', '.join(self.relations)}, found {shown(name)}")
        return self.relations[name]


def load(folder: str | os.PathLike[str] | None = None) -> Atlas:
    """The atlas in a folder of TOML files.

    Args:
        folder: where the files are; None for the atlas of this package.

    Returns:
        The atlas, its relations in the order of their names.

    Raises:
        InputError: for a folder without relations, and for a file that is not as the module says, with file and key.

    Example:
        >>> len(load().relations) >= 10
        True
    """
    place = Path(__file__).parent if folder is None else Path(folder)
    files = [file for file in sorted(place.glob("*.toml")) if file.stem != _ENTITIES]
    if not files:
        raise InputError(f"folder: expected a folder with one TOML file a relation, found {place}")
    relations = {file.stem: _relation(file) for file in files}
    for name, relation in relations.items():
        for hop in relation.hops:
            if hop not in relations or relations[hop].subject_kind != relation.object_kind:
                raise InputError(
                    f"{place / name}.toml: hops: expected relations about a {relation.object_kind}, found {shown(hop)}"
                )
    return Atlas(relations, _entities(place / f"{_ENTITIES}.toml"))


@cache
def shipped_atlas() -> Atlas:
    """The atlas of this package, read once.

    Returns:
        What `load()` gives, the same object at every call.

    Example:
        >>> shipped_atlas() is shipped_atlas()
        True
    """
    return load()


# --- files ------------------------------------------------------------------------------------------


def _relation(file: Path) -> RelationTable:
    table = _read(file)
    try:
        unknown, missing = sorted(set(table) - _KNOWN), sorted(_NEEDED - set(table))
        if unknown or missing:
            raise InputError(
                f"expected the keys {', '.join(sorted(_KNOWN))}, found {', '.join(unknown) or 'no'} too many, "
                f"and missed {', '.join(missing) or 'none'}"
            )
        if not isinstance(table.get("symmetric", False), bool):
            raise InputError(f"symmetric: expected true or false, found {shown(table['symmetric'])}")
        lists = ("templates", "held_out", "phrases", "phrases_held_out", "hops")
        return RelationTable(
            name=file.stem,
            subject_kind=check_text(table["subject_kind"], "subject_kind"),
            object_kind=check_text(table["object_kind"], "object_kind"),
            objects=_objects(table),
            left_out=_texts(table.get("left_out", {}), "left_out"),
            symmetric=table.get("symmetric", False),
            **{key: check_texts(table.get(key, []), key) for key in lists},
        )
    except InputError as error:
        raise InputError(f"{file}: {error}") from error


def _objects(table: Mapping[str, Any]) -> dict[str, str]:
    if ("facts" in table) == ("groups" in table):
        raise InputError("facts: expected either a table [facts] or a table [groups], found both or none")
    if "facts" in table:
        return _texts(table["facts"], "facts")
    objects: dict[str, str] = {}
    for value, subjects in _table(table["groups"], "groups").items():
        for subject in check_texts(subjects, f"groups.{value}"):
            if subject in objects:
                raise InputError(f"groups.{value}: {shown(subject)} is also under {shown(objects[subject])}")
            objects[subject] = value
    return objects


def _entities(file: Path) -> dict[str, dict[str, tuple[str, ...]]]:
    try:
        return {
            kind: {
                name: check_texts(others, f"{kind}.{name}") for name, others in _table(names, kind).items()
            }
            for kind, names in _read(file).items()
        }
    except InputError as error:
        raise InputError(f"{file}: {error}") from error


def _texts(value: Any, field: str) -> dict[str, str]:
    return {key: check_text(text, f"{field}.{key}") for key, text in _table(value, field).items()}


def _table(value: Any, field: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{field}: expected a table, found {shown(value)}")
    return value


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: expected a TOML file ({' '.join(str(error).split())})") from error
