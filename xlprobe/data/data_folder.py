"""Real text in one folder: Universal Dependencies, SIB-200 and Tatoeba, as their publishers name the files.

    ud/UD_English-EWT/en_ewt-ud-train.conllu        tags of English, to learn from
    ud/UD_German-PUD/de_pud-ud-test.conllu          the same 1,000 sentences in each language, tagged
    sib200/deu_Latn/train.tsv, test.tsv             topics, in each language
    tatoeba/tatoeba.deu-eng.deu, .eng               translation pairs, line-aligned

PUD is parallel and tagged, so it is split by `sent_id`: `held_out` sentences for distances, the others ask for tags,
the same ones in every language. What is learned from (tags, topics, pairs, pre-training) never holds a sentence that
is asked or measured: such sentences are left out, by hash of the text, and counted (`DataFolder.left_out`). What the
sets still share among themselves is in `DataFolder.overlap`.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from reports.errors import InputError
from xlprobe.data.corpora import (
    Bitext,
    Labelled,
    Words,
    load_bitext,
    load_conllu,
    load_sib200,
    overlap,
    text_hash,
)

__all__ = ["CODES", "DataFolder", "Names", "detached"]


class Names(NamedTuple):
    """What the corpora call a language: Universal Dependencies, Tatoeba (ISO 639-3), SIB-200 (FLORES-200)."""

    ud: str
    iso: str
    flores: str


SOURCE = "en"
CODES = {
    "en": Names("English", "eng", "eng_Latn"),
    "de": Names("German", "deu", "deu_Latn"),
    "tr": Names("Turkish", "tur", "tur_Latn"),
    "hi": Names("Hindi", "hin", "hin_Deva"),
    "ru": Names("Russian", "rus", "rus_Cyrl"),
}


class DataFolder:
    """The text of `folder`; each file is read when it is first needed.

    Args:
        folder: The folder with ud, sib200 and tatoeba.
        held_out: How many PUD sentences are kept for distances.

    Attributes:
        pairs: en-de and so on, of each language that has a Tatoeba file.

    Raises:
        InputError: A folder without these corpora, a language without pairs, and whatever the readers of
            `xlprobe.data.corpora` refuse, with file and line.
    """

    def __init__(self, folder: str | Path, *, held_out: int = 300) -> None:
        self.folder, self.n_held_out = Path(folder), held_out
        if missing := [name for name in ("ud", "sib200", "tatoeba") if not (self.folder / name).is_dir()]:
            raise InputError(
                f"data: expected a folder with ud, sib200 and tatoeba, found no {missing[0]} in {self.folder}; name it "
                "with --data, or in the environment as MECHEDIT_DATA"
            )
        targets = [code for code in CODES if code != SOURCE and self._tatoeba(code)[1].is_file()]
        if not targets:
            raise InputError(
                f"data: {self.folder / 'tatoeba'} has pairs of no known language; expected files such as "
                "tatoeba.deu-eng.deu and tatoeba.deu-eng.eng"
            )
        self.pairs = tuple(f"{SOURCE}-{code}" for code in targets)

    origin = "UD EWT and PUD, Tatoeba, SIB-200"

    # -- what there is, as `xlprobe.data.languages.LanguageTable` says it -----------------------------------

    def accepts(self, pair: str) -> bool:
        """Whether there is a bitext of the pair."""
        return pair in self.pairs

    def source(self, pair: str) -> str:
        """The language in which the pair's tasks are learned."""
        return SOURCE

    def lacks(self, pair: str, task: str) -> str:
        """Why the task cannot be studied on the pair: this folder has all that a study needs."""
        return ""

    def learned(self, task: str, language: str) -> Labelled | None:
        """The sentences of a language from which a task is learned; None where there are none."""
        if task == "topic":
            return self.topics(language)
        return self.tagged if language == SOURCE else None

    def asked(self, task: str, language: str) -> Labelled | None:
        """The sentences of a language in which a task is asked."""
        return self.topic_test(language) if task == "topic" else self.tag_test(language)

    def pretraining(self) -> dict[str, list[str]]:
        """The sentences of each language for pre-training, once each: EWT's and both sides of the pairs."""
        sentences: dict[str, dict[str, None]] = {SOURCE: dict.fromkeys(map(" ".join, self.tagged.words))}
        for pair in self.pairs:
            bitext = self.bitext(pair)
            for language, side in zip(pair.split("-"), (bitext.source, bitext.target), strict=True):
                sentences.setdefault(language, {}).update(dict.fromkeys(map(" ".join, side)))
        return {language: list(texts) for language, texts in sentences.items()}

    def measured_on(self, pair: str) -> str:
        """What the pair's distances are taken on, in words."""
        return "PUD's held-out sentences"

    # -- what is learned -----------------------------------------------------------------------------------

    @lru_cache(maxsize=16)  # noqa: B019 (a folder lives as long as its study)
    def bitext(self, pair: str) -> Bitext:
        """Tatoeba's pairs, English first, without the sentences that are asked or measured."""
        code = self._target(pair)
        pairs = load_bitext(*self._tatoeba(code))
        sides = [tuple(map(detached, side)) for side in _sides(pairs)]
        kept = [row for row in zip(*sides, strict=True) if not any(map(self._judges, row))]
        self._left[f"bitext {pair}"] = len(pairs) - len(kept)
        if not kept:
            raise InputError(f"data: no pairs of {pair} are left without the sentences that are asked")
        return Bitext(tuple(a for a, _ in kept), tuple(b for _, b in kept))

    @cached_property
    def tagged(self) -> Labelled:
        """The English sentences to learn tags from: EWT's training part."""
        path = self.folder / "ud" / "UD_English-EWT" / "en_ewt-ud-train.conllu"
        return self._clean("tags en", load_conllu(path))

    @lru_cache(maxsize=16)  # noqa: B019
    def topics(self, language: str) -> Labelled:
        """The texts of a language to learn topics from: SIB-200's training part."""
        return self._clean(f"topics {language}", self._sib(language, "train"))

    # -- what is asked and measured ------------------------------------------------------------------------

    @lru_cache(maxsize=16)  # noqa: B019
    def tag_test(self, language: str) -> Labelled:
        """The sentences whose tags are asked: PUD without its held-out sentences."""
        corpus = self._pud(language)
        return _rows(corpus, [i for i, name in enumerate(corpus.ids) if name not in self._held_out_ids])

    @lru_cache(maxsize=16)  # noqa: B019
    def topic_test(self, language: str) -> Labelled:
        """The texts whose topics are asked: SIB-200's test part."""
        return self._sib(language, "test")

    @lru_cache(maxsize=16)  # noqa: B019
    def held_out(self, pair: str) -> Bitext:
        """PUD's held-out sentences of both languages, matched by `sent_id`."""
        sides = []
        for language in (SOURCE, self._target(pair)):
            corpus = self._pud(language)
            by_id = dict(zip(corpus.ids, corpus.words, strict=True))
            if absent := sorted(self._held_out_ids - by_id.keys()):
                raise InputError(f"data: PUD of {language} lacks sentence {absent[0]}, which PUD of en has")
            sides.append(tuple(by_id[name] for name in sorted(self._held_out_ids)))
        return Bitext(sides[0], sides[1])

    # -- leaks ---------------------------------------------------------------------------------------------

    @property
    def left_out(self) -> dict[str, int]:
        """Sentences (or pairs) left out of each set that was read so far, because they are asked or measured."""
        return dict(self._left)

    def overlap(self, *, pretraining: Sequence[str | Words] = ()) -> pd.DataFrame:
        """What alignment, tasks, tests, distances (and `pretraining`) share: `xlprobe.data.corpora.overlap`."""
        codes = [self._target(pair) for pair in self.pairs]
        texts: dict[str, Sequence[str | Words]] = {"pre-training": pretraining} if pretraining else {}
        for pair in self.pairs:
            texts[f"alignment {pair}"] = [*self.bitext(pair).source, *self.bitext(pair).target]
        texts |= {"tags: train": self.tagged.words, "topics: train": self.topics(SOURCE).words}
        languages = (SOURCE, *codes)
        texts["tags: test"] = [w for code in languages for w in self.tag_test(code).words]
        texts["topics: test"] = [w for code in languages for w in self.topic_test(code).words]
        texts["distances"] = [w for p in self.pairs for s in _sides(self.held_out(p)) for w in s]
        return overlap(texts)

    @cached_property
    def hashes(self) -> dict[str, str]:
        """sha256 of each file that a study may read, by its path in the folder."""
        files = [self.folder / "ud" / "UD_English-EWT" / "en_ewt-ud-train.conllu"]
        for code in (SOURCE, *map(self._target, self.pairs)):
            files += [self._pud_file(code), *(self._sib_file(code, part) for part in ("train", "test"))]
            files += self._tatoeba(code) if code != SOURCE else []
        return {str(file.relative_to(self.folder)): _sha256(file) for file in files}

    # -- files ---------------------------------------------------------------------------------------------

    @cached_property
    def _left(self) -> dict[str, int]:
        return {}

    @cached_property
    def _held_out_ids(self) -> frozenset[str]:
        """The first ids in the order of their hashes, so that they are spread over PUD's parts."""
        ids = self._pud(SOURCE).ids
        if len(ids) < self.n_held_out + 4:
            raise InputError(
                f"held_out: expected at most {len(ids) - 4} of {len(ids)} PUD sentences, found {self.n_held_out}"
            )
        return frozenset(sorted(ids, key=text_hash)[: self.n_held_out])

    @cached_property
    def _judging_hashes(self) -> frozenset[str]:
        codes = (SOURCE, *map(self._target, self.pairs))
        texts = [w for code in codes for c in (self._pud(code), self._sib(code, "test")) for w in c.words]
        return frozenset(map(text_hash, texts))

    def _judges(self, words: Words) -> bool:
        return text_hash(words) in self._judging_hashes

    def _clean(self, name: str, corpus: Labelled) -> Labelled:
        kept = [i for i, words in enumerate(corpus.words) if not self._judges(words)]
        self._left[name] = len(corpus) - len(kept)
        return _rows(corpus, kept)

    def _target(self, pair: str) -> str:
        if pair not in self.pairs:
            raise InputError(f"pair: expected one of {', '.join(self.pairs)}, found {pair!r}")
        return pair.split("-")[1]

    @lru_cache(maxsize=16)  # noqa: B019
    def _pud(self, language: str) -> Labelled:
        return load_conllu(self._pud_file(language))

    @lru_cache(maxsize=32)  # noqa: B019
    def _sib(self, language: str, part: str) -> Labelled:
        corpus = load_sib200(self._sib_file(language, part))
        return Labelled(tuple(map(detached, corpus.words)), corpus.labels, corpus.ids)

    def _pud_file(self, language: str) -> Path:
        return self.folder / "ud" / f"UD_{CODES[language].ud}-PUD" / f"{language}_pud-ud-test.conllu"

    def _sib_file(self, language: str, part: str) -> Path:
        return self.folder / "sib200" / CODES[language].flores / f"{part}.tsv"

    def _tatoeba(self, language: str) -> tuple[Path, Path]:
        stem = self.folder / "tatoeba" / f"tatoeba.{CODES[language].iso}-eng"
        return Path(f"{stem}.eng"), Path(f"{stem}.{CODES[language].iso}")


def detached(words: Sequence[str]) -> Words:
    """The words with punctuation at their ends as words of its own, as Universal Dependencies writes them.

    Punctuation inside a word (don't, 3.5) stays, because only a language's own rules could split it.

    >>> detached(["«Maria", "isn't", "here...", "?"])
    ('«', 'Maria', "isn't", 'here', '.', '.', '.', '?')
    """
    pieces: list[str] = []
    for word in words:
        start, end = 0, len(word)
        while start < end and unicodedata.category(word[start])[0] == "P":
            start += 1
        while end > start and unicodedata.category(word[end - 1])[0] == "P":
            end -= 1
        pieces += [*word[:start], *([word[start:end]] if start < end else []), *word[end:]]
    return tuple(pieces)


def _rows(corpus: Labelled, rows: Sequence[int]) -> Labelled:
    words, labels = (tuple(side[i] for i in rows) for side in (corpus.words, corpus.labels))
    return Labelled(words, labels, tuple(corpus.ids[i] for i in rows))


def _sides(bitext: Bitext) -> tuple[tuple[Words, ...], tuple[Words, ...]]:
    return bitext.source, bitext.target


def _sha256(file: Path) -> str:
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(f"{file}: expected a readable file of the data ({error.strerror})") from error
