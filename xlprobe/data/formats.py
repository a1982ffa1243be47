"""Labelled text: any column of CoNLL-U, named entities in IOB2, texts and pairs of texts in TSV or a data set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from reports.errors import InputError
from xlprobe.data.bitext_formats import data_set_columns
from xlprobe.data.corpora import Labelled, load_conllu
from xlprobe.data.lines import text_lines
from xlprobe.encoders.batches import SEPARATOR

__all__ = ["COLUMNS", "load_iob2", "load_tags", "load_texts"]

#: The columns of CoNLL-U behind the word's number; FEATS:KEY and MISC:KEY are one of their entries.
COLUMNS = ("form", "lemma", "upos", "xpos", "feats", "head", "deprel", "deps", "misc")


def load_tags(path: str | Path, column: str = "upos") -> Labelled:
    r"""Words with the labels of any column of a CoNLL-U file.

    Args:
        path: The file.
        column: upos, xpos, deprel, lemma, feats and so on, or one entry, as feats:Case and misc:NER; a word without the
            entry has the label `_`.

    Raises:
        InputError: Another column, a column without any label, and what `load_conllu` refuses.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder) / "x.conllu"
    ...     _ = file.write_text("1\tHi\thi\tINTJ\tUH\tPolite=Form\t0\troot\t_\t_\n\n")
    ...     load_tags(file, "xpos").labels, load_tags(file, "feats:Polite").labels
    ((('UH',),), (('Form',),))
    """
    name, _, key = column.lower().partition(":")
    if name not in COLUMNS or (key and name not in ("feats", "misc")):
        raise InputError(
            f"column: expected one of {', '.join(COLUMNS)}, or an entry as feats:Case, found {column!r}"
        )
    if name == "upos":
        return load_conllu(path)
    place, key = COLUMNS.index(name) + 1, column.partition(":")[2]
    sentences, words, tags, sent_id = list[tuple[list[str], list[str], str]](), list[str](), list[str](), ""
    for number, line in enumerate([*text_lines(path), ""], start=1):
        if line.startswith("#"):
            left, _, right = line[1:].partition("=")
            sent_id = right.strip() if left.strip() == "sent_id" else sent_id
        elif line.strip():
            cells = line.split("\t")
            if len(cells) != 10:
                raise InputError(f"{path}: line {number}: expected 10 columns, found {len(cells)}")
            if cells[0].isdigit():
                words.append(cells[1])
                tags.append(_entry(cells[place], key) if key else cells[place])
        elif words:
            sentences.append((words, tags, sent_id or str(len(sentences))))
            words, tags, sent_id = [], [], ""
    if not any(tag != "_" for _, labels, _ in sentences for tag in labels):
        raise InputError(f"{path}: expected labels in the column {column}, found none")
    return _labelled(sentences)


def load_iob2(path: str | Path, *, word: int = 1, label: int = -1) -> Labelled:
    r"""Named entities: a word a line with its label (O, B-X, I-X), an empty line between sentences.

    Args:
        path: The file; cells stand between tabs, or else blanks.
        word: The column of the word, from 1.
        label: The column of the label, from 1; -1 is the last.

    Raises:
        InputError: A row that lacks a column, a label of another kind, or an I-X that continues nothing (IOB1).

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder) / "x.iob2"
    ...     _ = file.write_text("Anna B-PER\nKeller I-PER\nspeaks O\n")
    ...     load_iob2(file).labels
    (('B-PER', 'I-PER', 'O'),)
    """
    sentences, words, tags = list[tuple[list[str], list[str], str]](), list[str](), list[str]()
    for number, line in enumerate([*text_lines(path), ""], start=1):
        cells = line.split("\t") if "\t" in line else line.split()
        if line.startswith(("-DOCSTART-", "# ")):
            continue
        if not line.strip():
            if words:
                sentences.append((words, tags, str(len(sentences))))
            words, tags = [], []
            continue
        places = [place - 1 if place > 0 else len(cells) + place for place in (word, label)]
        if len(cells) < 2 or max(places) >= len(cells) or min(places) < 0:
            raise InputError(
                f"{path}: line {number}: expected a word and its label, found {len(cells)} cells"
            )
        tag = cells[places[1]]
        prefix, _, name = tag.partition("-")
        if tag != "O" and not (prefix in ("B", "I") and name):
            raise InputError(f"{path}: line {number}: expected O, B-X or I-X, found {tag!r}")
        if prefix == "I" and not (tags and tags[-1][2:] == name):
            raise InputError(
                f"{path}: line {number}: {tag} continues no {name} (IOB1?); expected IOB2, where a span begins with B-"
            )
        words.append(cells[places[0]])
        tags.append(tag)
    if not sentences:
        raise InputError(f"{path}: expected words with labels, found none")
    return _labelled(sentences)


def load_texts(
    source: str | Path, *, text: str = "text", label: str = "label", second: str | None = None
) -> Labelled:
    r"""Texts, or pairs of texts, with one label each: a TSV with named columns, or a `datasets` name.

    Args:
        source: A file whose first line names its columns; or any name or folder that `datasets` reads, `:split` behind.
        text: The column of the text (of the first text of a pair).
        label: The column of the label.
        second: The column of the second text of a pair.

    Raises:
        InputError: A column that is not there, or a row without text or label.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder) / "nli.tsv"
    ...     _ = file.write_text("premise\thypothesis\tgold\nIt rains .\tIt is wet .\tyes\n")
    ...     load_texts(file, text="premise", second="hypothesis", label="gold").labels
    (('yes',),)
    """
    columns = [text, label, *([second] if second else [])]
    if Path(source).is_file():
        rows = _named_columns(source, columns)
    else:
        rows = data_set_columns(str(source), columns)
    words = []
    for number, row in enumerate(rows):
        if not all(cell.strip() for cell in row):
            raise InputError(f"{source}: row {number + 1}: expected text and label, found an empty cell")
        words.append((*row[0].split(), *((SEPARATOR, *row[2].split()) if second else ())))
    return Labelled(tuple(words), tuple((row[1].strip(),) for row in rows), tuple(map(str, range(len(rows)))))


def _named_columns(path: str | Path, columns: Sequence[str]) -> list[tuple[str, ...]]:
    lines = [line for line in text_lines(path) if line]
    head = lines[0].split("\t") if lines else []
    if missing := [column for column in columns if column not in head]:
        raise InputError(
            f"{path}: no column {missing[0]!r}, only {', '.join(head)}; its first line names them"
        )
    rows = []
    for number, line in enumerate(lines[1:], start=2):
        cells = line.split("\t")
        if len(cells) != len(head):
            raise InputError(f"{path}: line {number}: expected {len(head)} columns, found {len(cells)}")
        rows.append(tuple(cells[head.index(column)] for column in columns))
    if not rows:
        raise InputError(f"{path}: expected texts, found none")
    return rows


def _entry(cell: str, key: str) -> str:
    entries = dict(part.partition("=")[::2] for part in cell.split("|"))
    return entries.get(key, "_") or "_"


def _labelled(sentences: Sequence[tuple[list[str], list[str], str]]) -> Labelled:
    return Labelled(
        tuple(tuple(words) for words, _, _ in sentences),
        tuple(tuple(tags) for _, tags, _ in sentences),
        tuple(name for _, _, name in sentences),
    )
