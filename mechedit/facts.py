"""Facts to edit: the record, and loaders that refuse what they do not understand.

A `FactEdit` is one counterfactual edit with the prompts that test it. Sources of the schemas: CounterFact
[Meng et al., NeurIPS 2022; kmeng01/rome] and its flat form in EasyEdit [zjunlp/EasyEdit]. Steps of
`load_facts`:

1. read the rows of a JSON, JSONL or Parquet file, or of a `datasets` name or folder;
2. detect the schema by the first row's keys;
3. build one `FactEdit` a row; a row that is not as its schema says is an `InputError` with file, index and
   field.

EasyEdit's `rephrase_prompt` is one of CounterFact's *generation* prompts, so a score on it is not ROME's
paraphrase score: `source_schema` says so, the loader logs it, and an evaluation carries the note.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, get_args

from reports.errors import InputError

__all__ = ["FactEdit", "Schema", "facts_hash", "load_facts"]

log = logging.getLogger(__name__)

Schema = Literal["counterfact", "easyedit"]
_SUFFIXES = (".json", ".jsonl", ".parquet")
_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?(:[\w.-]+)?")
_DETECTED_BY: dict[str, Schema] = {"requested_rewrite": "counterfact", "ground_truth": "easyedit"}


@dataclass(frozen=True)
class FactEdit:
    """One edit: the model shall answer `target_new` where it answers `target_true`.

    `prompt` holds exactly one `{}`, the place of `subject`. Targets are bare ("French"); the space before
    them is added where they are scored. `aliases` are other names of the subject, `target_new_aliases` other
    spellings of the new object. `source_schema` is the schema that it was loaded from ("" if built by hand).
    Errors: `InputError` naming the field, for an empty text, a prompt without one `{}`, or another type.

    >>> fact = FactEdit("Danielle Darrieux", "The mother tongue of {} is", "French", "English")
    >>> fact.rewrite_prompt
    'The mother tongue of Danielle Darrieux is'
    """

    subject: str
    prompt: str
    target_true: str
    target_new: str
    _: KW_ONLY
    case_id: int | str = 0
    relation: str = ""
    paraphrase_prompts: tuple[str, ...] = ()
    neighborhood_prompts: tuple[str, ...] = ()
    generation_prompts: tuple[str, ...] = ()
    attribute_prompts: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    target_new_aliases: tuple[str, ...] = ()
    source_schema: str = ""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(field.default, tuple):
                object.__setattr__(self, field.name, _texts(value, field.name))
            elif field.name == "case_id":
                if isinstance(value, bool) or not isinstance(value, int | str):
                    raise InputError(f"case_id: expected an integer or a text, found {_show(value)}")
            else:
                _text(value, field.name, empty=field.name in ("relation", "source_schema"))
        if self.prompt.count("{}") != 1:
            raise InputError(
                f"prompt: expected one {{}} in the place of the subject, found {self.prompt.count('{}')} "
                f"in {_show(self.prompt)}; write {{}} where {_show(self.subject)} belongs"
            )

    @property
    def rewrite_prompt(self) -> str:
        """The prompt with the subject in its place."""
        return self.prompt.replace("{}", self.subject)


def load_facts(
    path_or_dataset_name: str | os.PathLike[str], *, limit: int | None = None, schema: Schema | None = None
) -> list[FactEdit]:
    """The edits in a file, or in a data set that `datasets` can load.

    A `.json` file holds one array of objects, `.jsonl` one object a line, `.parquet` one row an edit.
    Anything that is no path is taken for a `datasets` name, `owner/name` or `owner/name:split` (a folder of
    such files is loaded by `datasets` too). `limit` takes the first rows, and only those are checked.
    `schema` is detected from the first row.
    Errors: `InputError` for a missing, unreadable or empty source, and for a malformed row (source, index,
    field).

    >>> import tempfile
    >>> row = {"case_id": 3, "prompt": "Ann speaks", "subject": "Ann", "target_new": "Greek"}
    >>> row |= {"ground_truth": "Dutch", "rephrase_prompt": "Ann talks", "locality_prompt": "Bob speaks"}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder) / "facts.json"
    ...     _ = file.write_text(json.dumps([row]), encoding="utf-8")
    ...     fact = load_facts(file)[0]
    >>> fact.prompt, fact.source_schema
    ('{} speaks', 'easyedit')
    """
    source = os.fspath(path_or_dataset_name)
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise InputError(f"limit: expected at least 1 or None, found {limit!r}")
    if schema is not None and schema not in get_args(Schema):
        raise InputError(f"schema: expected one of {', '.join(get_args(Schema))}, found {schema!r}")
    rows = _rows(source, limit)
    if not rows:
        raise InputError(f"{source}: expected at least one record, found none")
    found = schema or _detect(rows[0], source)
    build = _BUILDERS[found]
    facts = [_build_row(build, row, f"{source}: record {index}") for index, row in enumerate(rows)]
    if found == "easyedit":
        log.warning(
            "%s: EasyEdit's rephrase_prompt is one of CounterFact's generation prompts; "
            "PS and Gen on it are not ROME's paraphrase scores",
            source,
        )
    return facts


def facts_hash(facts: Sequence[FactEdit]) -> str:
    """sha256 over every field of every fact, in order: what a run's provenance says of its data.

    >>> facts_hash([]) == facts_hash([FactEdit("Ann", "{} speaks", "Dutch", "Greek")])
    False
    """
    rows = [dataclasses.asdict(fact) for fact in facts]
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()


# --- rows of a source -------------------------------------------------------------------------------


def _rows(source: str, limit: int | None) -> list[Any]:
    path = Path(source)
    try:
        is_file, is_folder = path.is_file(), path.is_dir()
    except OSError as error:  # a name longer than the file system allows
        raise InputError(f"{_clip(source)}: expected a data file ({_one_line(error)})") from error
    if is_file:
        return _file_rows(path)[:limit]
    looks_like_path = path.suffix.lower() in _SUFFIXES or not _NAME.fullmatch(source)
    if not is_folder and looks_like_path:
        raise InputError(f"{source}: expected a data file, found none; check the path")
    return _dataset_rows(source, limit, is_folder=is_folder)


def _file_rows(path: Path) -> list[Any]:
    if path.suffix.lower() not in _SUFFIXES:
        raise InputError(
            f"{path}: expected a {', '.join(_SUFFIXES)} file, found {path.suffix or 'no suffix'}"
        )
    try:
        if path.suffix.lower() == ".parquet":
            import pyarrow.parquet as pq

            return pq.read_table(path).to_pylist()
        text = path.read_text(encoding="utf-8-sig")
        rows = _lines(text) if path.suffix.lower() == ".jsonl" else json.loads(text)
    except (OSError, ValueError, RecursionError) as error:  # JSON, Unicode and Arrow errors are ValueErrors
        raise InputError(f"{path}: not readable as {path.suffix[1:].lower()} ({_one_line(error)})") from error
    if not isinstance(rows, list):
        raise InputError(f"{path}: expected a JSON array of records, found {type(rows).__name__}")
    return rows


def _lines(text: str) -> list[Any]:
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from error
    return rows


def _dataset_rows(source: str, limit: int | None, *, is_folder: bool) -> list[Any]:
    import datasets

    name, _, split = (source, "", "") if is_folder else source.partition(":")
    try:
        loaded = datasets.load_dataset(name)
    except (
        Exception
    ) as error:  # `datasets` documents no common base of what it raises for a name it cannot load
        raise InputError(
            f"{source}: no such file, and no data set of that name could be loaded ({_one_line(error)})"
        ) from error
    if not split and len(loaded) > 1:
        splits = ", ".join(loaded)
        raise InputError(f"{source}: expected one split, found {splits}; write {name}:{next(iter(loaded))}")
    split = split or next(iter(loaded))
    if split not in loaded:
        raise InputError(f"{source}: expected one of the splits {', '.join(loaded)}, found {split!r}")
    return list(islice(loaded[split], limit))


# --- one row ----------------------------------------------------------------------------------------


def _detect(row: Any, source: str) -> Schema:
    _object(row, f"{source}: record 0")
    for key, schema in _DETECTED_BY.items():
        if row.get(key) is not None:
            return schema
    keys = ", ".join(map(str, row)) or "no keys"
    raise InputError(
        f"{source}: record 0: expected CounterFact's keys ('requested_rewrite', ...) or EasyEdit's "
        f"('ground_truth', ...), found {_clip(keys)}"
    )


def _build_row(build: Callable[[dict[str, Any]], FactEdit], row: Any, where: str) -> FactEdit:
    _object(row, where)
    try:
        return build(row)
    except InputError as error:
        raise InputError(f"{where}: field {error}") from error


def _counterfact(row: dict[str, Any]) -> FactEdit:
    rewrite = "requested_rewrite"
    return FactEdit(
        subject=_text_at(row, f"{rewrite}.subject"),
        prompt=_text_at(row, f"{rewrite}.prompt"),
        target_true=_text_at(row, f"{rewrite}.target_true.str"),
        target_new=_text_at(row, f"{rewrite}.target_new.str"),
        case_id=_at(row, "case_id"),
        relation=_optional(row[rewrite], "relation_id", ""),
        paraphrase_prompts=_at(row, "paraphrase_prompts"),
        neighborhood_prompts=_at(row, "neighborhood_prompts"),
        generation_prompts=_optional(row, "generation_prompts", ()),
        attribute_prompts=_optional(row, "attribute_prompts", ()),
        source_schema="counterfact",
    )


def _easyedit(row: dict[str, Any]) -> FactEdit:
    subject, prompt, true = (_text_at(row, field) for field in ("subject", "prompt", "ground_truth"))
    # neighbours are scored old against new object, so another right answer there would be scored as wrong
    neighbour = _optional(row, "locality_ground_truth", true)
    if neighbour != true:
        raise InputError(
            f"locality_ground_truth: expected the ground_truth {_show(true)}, found {_show(neighbour)}"
        )
    return FactEdit(
        subject=subject,
        prompt=_template(prompt, subject),
        target_true=true,
        target_new=_text_at(row, "target_new"),
        case_id=_at(row, "case_id"),
        paraphrase_prompts=_one_or_more(row, "rephrase_prompt"),
        neighborhood_prompts=_one_or_more(row, "locality_prompt"),
        source_schema="easyedit",
    )


_BUILDERS: dict[Schema, Callable[[dict[str, Any]], FactEdit]] = {
    "counterfact": _counterfact,
    "easyedit": _easyedit,
}


def _template(prompt: str, subject: str) -> str:
    """`prompt` with `{}` for the subject: its first occurrence as a whole word, else its first occurrence."""
    if subject not in prompt:
        raise InputError(f"prompt: expected it to hold the subject {_show(subject)}, found {_show(prompt)}")
    whole = re.search(rf"(?<!\w){re.escape(subject)}(?!\w)", prompt)
    start = whole.start() if whole else prompt.index(subject)
    return prompt[:start] + "{}" + prompt[start + len(subject) :]


def _at(row: dict[str, Any], field: str) -> Any:
    """The value at a dotted `field`; a column of nulls (Parquet) is as good as a missing key."""
    value: Any = row
    for depth, key in enumerate(field.split("."), start=1):
        if not isinstance(value, dict):
            raise InputError(
                f"{'.'.join(field.split('.')[: depth - 1])}: expected an object, found {_show(value)}"
            )
        value = value.get(key)
        if value is None:
            raise InputError(f"{'.'.join(field.split('.')[:depth])}: expected a value, found none")
    return value


def _optional(row: dict[str, Any], key: str, default: Any) -> Any:
    value = row.get(key)
    return default if value is None else value


def _text_at(row: dict[str, Any], field: str) -> str:
    return _text(_at(row, field), field)


def _one_or_more(row: dict[str, Any], field: str) -> tuple[str, ...]:
    value = _at(row, field)
    return (_text(value, field),) if isinstance(value, str) else _texts(value, field)


def _object(row: Any, where: str) -> None:
    if not isinstance(row, dict):
        raise InputError(f"{where}: expected an object, found {_show(row)}")


def _text(value: Any, field: str, *, empty: bool = False) -> str:
    if not isinstance(value, str):
        raise InputError(f"{field}: expected a text, found {_show(value)}")
    if not empty and not value.strip():
        raise InputError(f"{field}: expected a text, found an empty one ({value!r})")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:  # JSON can spell half a surrogate pair; no tokenizer can read it
        raise InputError(f"{field}: expected valid Unicode, found {_show(value)}") from error
    return value


def _texts(value: Any, field: str) -> tuple[str, ...]:
    if not isinstance(value, list | tuple):
        raise InputError(f"{field}: expected a list of texts, found {_show(value)}")
    return tuple(_text(item, f"{field}[{i}]") for i, item in enumerate(value))


def _show(value: object) -> str:
    return f"{type(value).__name__} {_clip(ascii(value) if isinstance(value, str) else repr(value))}"


def _clip(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 70 else text[:69] + "…"


def _one_line(error: Exception) -> str:
    return _clip(f"{type(error).__name__}: {error}" if not isinstance(error, ValueError) else str(error))
