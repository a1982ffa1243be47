"""Text of users: Universal Dependencies, SIB-200, bitext, word links; every fault is named with file and line.

- `load_conllu`: words and universal tags of a CoNLL-U file. Ranges (26-27) and empty nodes (8.1) are no words; a row
  without ten columns is an error. Sentences without words (`_`, their text was withheld) or with a word without a tag
  (`_`) are left out and counted; a file of such sentences alone is refused.
- `load_sib200`: texts with topics of a TSV, read without quoting, for its texts hold lone quotation marks.
- `load_bitext`: translation pairs in any usual form (`xlprobe.data.bitext_formats`).
- `load_links`: word alignments in Pharaoh format (`0-0 1-2`, possible ones `1?2`), and `dictionary_links` from a
  bilingual dictionary.
- `overlap`: what two of alignment, task and distance-probe text have in common, by hash of the normalised text.
"""

from __future__ import annotations

import hashlib
import logging
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Literal, overload

import pandas as pd

from reports.errors import InputError
from xlprobe.data.bitext_formats import read_pairs
from xlprobe.data.lines import text_lines

__all__ = [
    "Bitext",
    "Labelled",
    "dictionary_links",
    "load_bitext",
    "load_conllu",
    "load_links",
    "load_sib200",
    "overlap",
    "text_hash",
    "text_lines",
]

logger = logging.getLogger(__name__)

Words = tuple[str, ...]
Links = tuple[tuple[int, int], ...]
_SHOWN = 8  # labels of a repr
_PHARAOH = re.compile(r"([0-9]{1,9})([-p?])([0-9]{1,9})")


@dataclass(frozen=True, repr=False)
class Labelled:
    """Sentences with labels, of one language: a tag for each word, or one label for each text.

    Attributes:
        words: The words of each sentence.
        labels: As many labels as words (tagging), or one label (classification), for each sentence.
        ids: The corpus's own name of each sentence, by which parallel corpora are matched.

    Raises:
        InputError: The three are not of one length, or a label is empty.
    """

    words: tuple[Words, ...]
    labels: tuple[Words, ...]
    ids: tuple[str, ...]

    def __post_init__(self) -> None:
        if not len(self.words) == len(self.labels) == len(self.ids):
            sizes = f"{len(self.words)}, {len(self.labels)} and {len(self.ids)}"
            raise InputError(f"labels: expected words, labels and ids of one length, found {sizes}")
        for number, labels in enumerate(self.labels):
            if "" in labels:
                raise InputError(f"labels: sentence {number} ({self.ids[number]}) has an empty label")

    def __len__(self) -> int:
        return len(self.words)

    def __iter__(self) -> Iterator[tuple[Words, Words]]:
        return iter(zip(self.words, self.labels, strict=True))

    @overload
    def __getitem__(self, rows: int) -> tuple[Words, Words]: ...

    @overload
    def __getitem__(self, rows: slice) -> Labelled: ...

    def __getitem__(self, rows: int | slice) -> tuple[Words, Words] | Labelled:
        """The (words, labels) of a sentence by its number, or the sentences of a slice."""
        if not isinstance(rows, slice):
            return self.words[rows], self.labels[rows]
        return Labelled(self.words[rows], self.labels[rows], self.ids[rows])

    def __repr__(self) -> str:
        labels = sorted({label for labels in self.labels for label in labels})
        names = ", ".join(labels[:_SHOWN]) + (", ..." if len(labels) > _SHOWN else "")
        words = sum(map(len, self.words))
        return f"Labelled({len(self):,} sentences, {words:,} words, {len(labels)} labels: {names})"


@dataclass(frozen=True, repr=False)
class Bitext:
    """Translation pairs as words.

    Attributes:
        source: The words of each sentence of one language.
        target: The words of their translations.
        links: The (source word, target word) links of each pair, or None.

    Raises:
        InputError: The sides (and links) are not of one length, or a link points beyond a sentence.
    """

    source: tuple[Words, ...]
    target: tuple[Words, ...]
    links: tuple[Links, ...] | None = None

    def __post_init__(self) -> None:
        sides = [len(self.source), len(self.target)] + ([len(self.links)] if self.links is not None else [])
        if len(set(sides)) > 1:
            raise InputError(
                f"bitext: expected sides (and links) of one length, found {', '.join(map(str, sides))}"
            )
        for number, pair in enumerate(self.links or ()):
            for i, j in pair:
                if not (0 <= i < len(self.source[number]) and 0 <= j < len(self.target[number])):
                    raise InputError(
                        f"links: pair {number}: {i}-{j} points beyond {len(self.source[number])} source and "
                        f"{len(self.target[number])} target words (words count from 0)"
                    )

    def __len__(self) -> int:
        return len(self.source)

    def __iter__(self) -> Iterator[tuple[Words, Words]]:
        return iter(zip(self.source, self.target, strict=True))

    @overload
    def __getitem__(self, rows: int) -> tuple[Words, Words]: ...

    @overload
    def __getitem__(self, rows: slice) -> Bitext: ...

    def __getitem__(self, rows: int | slice) -> tuple[Words, Words] | Bitext:
        """A pair (source words, target words) by its number, or the bitext of a slice."""
        if not isinstance(rows, slice):
            return self.source[rows], self.target[rows]
        links = None if self.links is None else self.links[rows]
        return Bitext(self.source[rows], self.target[rows], links)

    def __repr__(self) -> str:
        words = [sum(map(len, side)) for side in (self.source, self.target)]
        links = "no links" if self.links is None else f"{sum(map(len, self.links)):,} links"
        return f"Bitext({len(self):,} pairs, {words[0]:,} and {words[1]:,} words, {links})"

    @property
    def n_duplicates(self) -> int:
        """The number of pairs of which a side stands in an earlier pair too, on either side.

        >>> Bitext((("a",), ("b",), ("a",)), (("x",), ("y",), ("z",))).n_duplicates
        1
        """
        seen, count = set[Words](), 0
        for pair in self:
            count += any(side in seen for side in pair)
            seen.update(pair)
        return count


# ------------------------------------------------------------------------------------------ labelled text


def load_conllu(path: str | Path) -> Labelled:
    r"""Words (FORM) and universal tags (UPOS) of a CoNLL-U file; `ids` are its `sent_id`s.

    Raises:
        InputError: A row without ten columns, no sentences, or none with words and tags.

    >>> import tempfile
    >>> row = "1\tHi\thi\tINTJ\t_\t_\t0\troot\t_\t_"
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder) / "x.conllu"
    ...     _ = file.write_text("# sent_id = a1\n" + row + "\n\n")
    ...     load_conllu(file)
    Labelled(1 sentences, 1 words, 1 labels: INTJ)
    """
    sentences: list[tuple[list[str], list[str], str]] = []
    words, tags, name = list[str](), list[str](), ""
    for number, line in enumerate([*text_lines(path), ""], start=1):
        if line.startswith("#"):
            key, _, value = line[1:].partition("=")
            name = value.strip() if key.strip() == "sent_id" else name
        elif line.strip():
            columns = line.split("\t")
            if len(columns) != 10:
                raise InputError(f"{path}: line {number}: expected 10 columns, found {len(columns)}")
            if columns[0].isdigit():  # neither a range of a multi-word token nor an empty node
                words.append(columns[1])
                tags.append(columns[3])
        elif words:
            sentences.append((words, tags, name or str(len(sentences))))
            words, tags, name = [], [], ""
    if not sentences:
        raise InputError(f"{path}: expected CoNLL-U sentences, found none")
    sentences = _annotated(path, sentences)
    return Labelled(
        tuple(tuple(w) for w, _, _ in sentences),
        tuple(tuple(t) for _, t, _ in sentences),
        tuple(n for _, _, n in sentences),
    )


def _annotated(
    path: str | Path, sentences: list[tuple[list[str], list[str], str]]
) -> list[tuple[list[str], list[str], str]]:
    """The sentences that have words, and a tag for each; the others are counted in the log."""
    withheld = any(len(words) > 1 and set(words) == {"_"} for words, _, _ in sentences)
    wordless = [withheld and set(words) == {"_"} for words, _, _ in sentences]
    untagged = [not blank and "_" in tags for (_, tags, _), blank in zip(sentences, wordless, strict=True)]
    kept = [s for s, a, b in zip(sentences, wordless, untagged, strict=True) if not (a or b)]
    if not kept:
        lacks = (
            "words (FORM is _: the treebank comes without its text)" if all(wordless) else "tags (UPOS is _)"
        )
        raise InputError(
            f"{path}: expected words with universal tags, found {len(sentences)} sentences without {lacks}"
        )
    for what, n in (("words (FORM is _)", sum(wordless)), ("a tag of every word (UPOS is _)", sum(untagged))):
        if n:
            logger.warning("%s: %d of %d sentences are left out, without %s", path, n, len(sentences), what)
    return kept


def load_sib200(path: str | Path) -> Labelled:
    r"""Texts (split at spaces) and topics of a SIB-200 file with the columns index_id, category, text.

    Raises:
        InputError: Another header, a row without three columns, or one without topic or text.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder) / "test.tsv"
    ...     _ = file.write_text("index_id\tcategory\ttext\n7\ttravel\tA train to Rome\n")
    ...     load_sib200(file).labels
    (('travel',),)
    """
    rows = [
        line.split("\t") if line else [] for line in text_lines(path)
    ]  # no quoting: texts hold lone marks
    if not rows or rows[0] != ["index_id", "category", "text"]:
        raise InputError(f"{path}: expected the columns index_id, category, text, found {rows[:1]}")
    for number, row in enumerate(rows[1:], start=2):
        if len(row) != 3:
            raise InputError(f"{path}: line {number}: expected 3 columns, found {len(row)}")
        if not (row[1].strip() and row[2].strip()):
            raise InputError(f"{path}: line {number}: expected a category and a text, found {row[1:]}")
    return Labelled(
        tuple(tuple(text.split()) for _, _, text in rows[1:]),
        tuple((label,) for _, label, _ in rows[1:]),
        tuple(name for name, _, _ in rows[1:]),
    )


# ------------------------------------------------------------------------------------------ bitext


def load_bitext(
    source: str | Path,
    target: str | Path | None = None,
    *,
    columns: Sequence[str | int] | None = None,
    languages: Sequence[str] | None = None,
    links: str | Path | None = None,
    base: Literal[0, 1] = 0,
    possible: bool = True,
    unique: bool = False,
) -> Bitext:
    r"""Translation pairs: two line-aligned files, TSV, `a ||| b`, TMX, a Moses pair, or a `datasets` name.

    A pair with an empty side is left out. Files may end in .gz (`xlprobe.data.bitext_formats`).

    Args:
        source: A file, the prefix of a Moses pair, or any name or folder that `datasets` reads, with `:split` behind it
            where the split is not `train`.
        target: The file of the other side.
        columns: Two columns of a TSV (names of its first line, or numbers from 1) or of a data set.
        languages: The two languages of a Moses pair or of a TMX file.
        links: A file of word alignments in Pharaoh format.
        base: The number of the first word in it.
        possible: Whether its possible links (`3p4`, `3?4`) count as the sure ones do.
        unique: Whether a pair that occurs again is left out.

    Raises:
        InputError: Sides of unequal length (with both lengths), no pairs, no text, or a fault in the links.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder) / "pairs.txt"
    ...     _ = file.write_text("a red house ||| ein rotes Haus\n")
    ...     load_bitext(file)[0]
    (('a', 'red', 'house'), ('ein', 'rotes', 'Haus'))
    """
    pairs = read_pairs(source, target, columns=columns, languages=languages)
    linked = load_links(links, base=base, possible=possible) if links is not None else None
    if linked is not None and len(linked) != len(pairs):
        raise InputError(f"links: expected a line a pair, found {len(linked)} lines and {len(pairs)} pairs")
    kept = [i for i, (a, b) in enumerate(pairs) if a.strip() and b.strip()]
    if unique:
        first = {tuple(" ".join(side.split()) for side in pairs[i]): i for i in reversed(kept)}
        again = len(kept) - len(first)
        kept = sorted(first.values())
        if again:
            logger.warning("%s: %d pairs that occur again are left out", source, again)
    if not kept:
        raise InputError(f"bitext: {source} holds no pairs with text on both sides")
    return Bitext(
        tuple(tuple(pairs[i][0].split()) for i in kept),
        tuple(tuple(pairs[i][1].split()) for i in kept),
        None if linked is None else tuple(linked[i] for i in kept),
    )


def load_links(path: str | Path, *, base: Literal[0, 1] = 0, possible: bool = True) -> tuple[Links, ...]:
    r"""Word alignments in Pharaoh format: a line a pair, `i-j` for source word i and target word j.

    Args:
        path: The file.
        base: The number of the first word: 0, or 1 as in some gold alignments.
        possible: Whether possible links (`i?j`, `ipj`) are kept beside the sure ones.

    Raises:
        InputError: A cell that is no link, or a number below the base.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder) / "a.links"
    ...     _ = file.write_text("1-1 2-3\n")
    ...     load_links(file, base=1)
    (((0, 0), (1, 2)),)
    """
    if base not in (0, 1):
        raise InputError(f"base: expected 0 or 1, found {base}")
    links = []
    for number, line in enumerate(text_lines(path), start=1):
        cells = line.split()
        if wrong := [cell for cell in cells if not _PHARAOH.fullmatch(cell)]:
            raise InputError(f"{path}: line {number}: expected links as 0-0 1-2, found {wrong[0]!r}")
        read = [_PHARAOH.fullmatch(cell) for cell in cells]
        pairs = [(int(m[1]) - base, int(m[3]) - base) for m in read if m and (possible or m[2] == "-")]
        if any(min(pair) < 0 for pair in pairs):
            raise InputError(
                f"{path}: line {number}: a word has the number 0; expected numbers from 1 (base)"
            )
        links.append(tuple(dict.fromkeys(pairs)))
    return tuple(links)


def dictionary_links(bitext: Bitext, dictionary: Mapping[str, Sequence[str]]) -> Bitext:
    """The bitext with a link wherever a target word is a translation of a source word (case folded).

    >>> pair = Bitext((("The", "dog"),), (("der", "Hund"),))
    >>> dictionary_links(pair, {"dog": ["Hund"], "the": ["der", "die"]}).links
    (((0, 0), (1, 1)),)
    """
    known = {word.casefold(): {t.casefold() for t in words} for word, words in dictionary.items()}
    links = tuple(
        tuple(
            (i, j)
            for i, word in enumerate(source)
            for j, translation in enumerate(target)
            if translation.casefold() in known.get(word.casefold(), ())
        )
        for source, target in zip(bitext.source, bitext.target, strict=True)
    )
    return Bitext(bitext.source, bitext.target, links)


# ------------------------------------------------------------------------------------------ leaks


def text_hash(sentence: str | Sequence[str]) -> str:
    """sha256 of a sentence, NFKC, case folded, without white space and punctuation: spacing cannot hide a copy.

    >>> text_hash("Don't go!") == text_hash(["Do", "n't", "go", "!"]) != text_hash("Go on!")
    True
    """
    text = sentence if isinstance(sentence, str) else "".join(sentence)
    folded = unicodedata.normalize("NFKC", text).casefold()
    kept = "".join(c for c in folded if unicodedata.category(c)[0] not in "PZC")
    return hashlib.sha256(kept.encode()).hexdigest()


def overlap(texts: Mapping[str, Sequence[str | Sequence[str]]]) -> pd.DataFrame:
    """Frame a, b, shared, n_a, n_b: how many different texts of a stand in b too, for each two of the named corpora.

    >>> overlap({"alignment": ["Hello.", "One"], "task": ["hello", "Two"]}).iloc[0].to_dict()
    {'a': 'alignment', 'b': 'task', 'shared': 1, 'n_a': 2, 'n_b': 2}
    """
    hashes = {name: set(map(text_hash, corpus)) for name, corpus in texts.items()}
    rows = [
        (a, b, len(hashes[a] & hashes[b]), len(hashes[a]), len(hashes[b])) for a, b in combinations(hashes, 2)
    ]
    return pd.DataFrame(rows, columns=["a", "b", "shared", "n_a", "n_b"])
