"""Translation pairs as people keep them: two files, TSV, `a ||| b`, TMX, a Moses pair, a data set; each may be gzipped.

| given | read as |
|---|---|
| two files | line-aligned |
| a prefix and `languages` (en, de) | Moses: PREFIX.en and PREFIX.de, or PREFIX.en-de.en and PREFIX.en-de.de |
| FILE.tmx | TMX: units with both `languages` (by their first part: de is de-AT too), or with just two languages |
| FILE with ` ||| ` in its first line | two sides, or more fields with `columns` |
| FILE.tsv | two columns, or those of `columns`: names of its first line, or numbers from 1 |
| another name with `columns` | a `datasets` name, `:split` behind it |
"""

from __future__ import annotations

import gzip
import xml.etree.ElementTree as ElementTree
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reports.errors import InputError, first_line
from xlprobe.data.lines import text_lines

__all__ = ["data_set_columns", "read_pairs"]

BAR = " ||| "
LANG = "{http://www.w3.org/XML/1998/namespace}lang"

Columns = Sequence[str | int]


def read_pairs(
    source: str | Path,
    target: str | Path | None = None,
    *,
    columns: Columns | None = None,
    languages: Sequence[str] | None = None,
) -> list[tuple[str, str]]:
    r"""The pairs of texts as they stand, empty sides too.

    Raises:
        InputError: Sides of unequal length, a row that lacks a column, a file that is no such thing.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder) / "pairs.txt"
    ...     _ = file.write_text("a dog ||| ein Hund\na cat ||| eine Katze\n")
    ...     read_pairs(file)
    [('a dog', 'ein Hund'), ('a cat', 'eine Katze')]
    """
    for name, given in (("columns", columns), ("languages", languages)):
        if given is not None and (len(given) != 2 or isinstance(given, str)):
            raise InputError(f"{name}: expected two, found {given!r}")
    if target is not None:
        return _aligned(source, target)
    plain = str(source).removesuffix(".gz")
    if plain.endswith(".tmx"):
        return _tmx(source, languages)
    if languages is not None:
        return _aligned(*_moses(str(source), languages))
    if Path(source).is_file() or columns is None:
        return _rows(source, columns)
    return [(row[0], row[1]) for row in data_set_columns(str(source), [str(column) for column in columns])]


def _aligned(source: str | Path, target: str | Path) -> list[tuple[str, str]]:
    left, right = text_lines(source), text_lines(target)
    if len(left) != len(right):
        raise InputError(
            f"bitext: expected line-aligned files, found {len(left)} lines in {source} and {len(right)} in {target}"
        )
    return list(zip(left, right, strict=True))


def _moses(prefix: str, languages: Sequence[str]) -> tuple[str, str]:
    a, b = languages
    stems = (prefix, f"{prefix}.{a}-{b}", f"{prefix}.{b}-{a}")
    tried = [tuple(f"{stem}.{code}{end}" for code in (a, b)) for stem in stems for end in ("", ".gz")]
    for left, right in tried:
        if Path(left).is_file() and Path(right).is_file():
            return left, right
    raise InputError(f"bitext: expected a Moses pair such as {tried[0][0]} and {tried[0][1]}, found none")


def _rows(path: str | Path, columns: Columns | None) -> list[tuple[str, str]]:
    lines = text_lines(path)
    mark = BAR if BAR in lines[0] and "\t" not in lines[0] else "\t"
    places, start = (0, 1), 0
    if columns is not None:
        places, start = _places(path, lines[0].split(mark), columns)
    pairs = []
    for number, line in enumerate(lines[start:], start=start + 1):
        cells = line.split(mark)
        if mark == BAR and len(cells) == 1:  # an empty side, whose blank an editor took away
            cells = f" {line} ".split(BAR)
        if columns is None and len(cells) != 2:
            raise InputError(
                f"{path}: line {number}: expected 2 columns, found {len(cells)}; choose two with columns"
            )
        if max(places) >= len(cells):
            raise InputError(f"{path}: line {number}: expected {max(places) + 1} columns, found {len(cells)}")
        pairs.append((cells[places[0]].strip(), cells[places[1]].strip()))
    return pairs


def _places(path: str | Path, head: list[str], columns: Columns) -> tuple[tuple[int, int], int]:
    """The columns' places from 0, and the first line of text."""
    if all(str(column).isdigit() for column in columns):
        numbers = [int(column) for column in columns]
        if min(numbers) < 1:
            raise InputError(f"columns: expected numbers from 1, found {min(numbers)}")
        return (numbers[0] - 1, numbers[1] - 1), 0
    names = [name.strip() for name in head]
    if missing := [column for column in columns if column not in names]:
        raise InputError(f"columns: {path} has no column {missing[0]!r}, only {', '.join(names)}")
    return (names.index(str(columns[0])), names.index(str(columns[1]))), 1


def _tmx(path: str | Path, languages: Sequence[str] | None) -> list[tuple[str, str]]:
    try:
        content = Path(path).read_bytes()
        content = gzip.decompress(content) if str(path).endswith(".gz") else content
        if b"<!ENTITY" in content:
            raise InputError(f"{path}: expected TMX without entities of its own")
        root = ElementTree.fromstring(content)
    except (OSError, EOFError, zlib.error, ElementTree.ParseError) as error:
        raise InputError(f"{path}: expected a readable TMX file ({first_line(error)})") from error
    pairs, wanted = [], None if languages is None else [code.lower().split("-")[0] for code in languages]
    for unit in root.iter("tu"):
        texts: dict[str, str] = {}
        for variant in unit.iter("tuv"):
            code, segment = (variant.get(LANG) or variant.get("lang") or "").lower(), variant.find("seg")
            text = "" if segment is None else "".join(segment.itertext())
            texts.setdefault(code.split("-")[0], " ".join(text.split()))
        if languages is None:
            wanted = wanted or list(texts)
            if len(texts) != 2 or set(texts) != set(wanted):
                known = ", ".join(dict.fromkeys([*wanted, *texts]))
                raise InputError(
                    f"{path}: expected units of the same two languages, found {known}; name two of them"
                )
        if wanted and all(code in texts for code in wanted):
            pairs.append((texts[wanted[0]], texts[wanted[1]]))
    if not pairs:
        raise InputError(
            f"{path}: no unit has a text in both languages{f' {languages}' if languages else ''}"
        )
    return pairs


def data_set_columns(name: str, columns: Sequence[str]) -> list[tuple[str, ...]]:
    """The texts of some columns of a `datasets` name, `:split` behind it; classes by their names.

    Raises:
        InputError: No such data set, no such column, or something else than texts and classes in it.
    """
    import datasets

    path, _, split = name.partition(":")
    try:
        rows = datasets.load_dataset(path, split=split or "train")
    except Exception as error:  # `datasets` documents no common base of what it raises
        reason = first_line(error)
        raise InputError(f"bitext: no file and no data set {name!r} could be loaded ({reason})") from error
    missing = [column for column in columns if column not in rows.column_names]
    if missing:
        raise InputError(f"bitext: {name} has no column {missing[0]!r}, only {', '.join(rows.column_names)}")
    sides = []
    for column in columns:
        feature = rows.features[column]
        cells: list[Any] = list(rows[column])
        if isinstance(feature, datasets.ClassLabel):
            cells = [None if cell is None or cell < 0 else feature.int2str(cell) for cell in cells]
        cells = ["" if cell is None else cell for cell in cells]
        if strange := [cell for cell in cells if not isinstance(cell, str)]:
            raise InputError(
                f"bitext: column {column!r} of {name}: expected text, found {type(strange[0]).__name__}; a data set "
                "of nested translations has to be flattened first"
            )
        sides.append(cells)
    return list(zip(*sides, strict=True))
