"""Text of the user's own languages: a table that says, for each, which files there are; every one is optional.

    [languages.en]
    ud_train = "ud/en_ewt-ud-train.conllu"     tags to learn from
    [languages.kk]
    ud_test = "ud/kk_ktb-ud-test.conllu"       tags that are asked
    parallel = "pud/kk.conllu"                 the same sentences as other languages' `parallel`, by sent_id: distances
    sib = "sib200/kaz_Cyrl"                    topics: a folder with train.tsv, test.tsv or both
    bitext.ja = ["kk-ja.kk", "kk-ja.ja"]       translation pairs, this language first: two files, or one of both sides

Each bitext makes a pair, which can be named in either direction (`ja-kk`, `kk-ja`): the first is its source. A task is
learned in the source language of the pair, or in one language for all pairs (`learn`), and asked in the target. What
the files do not allow is left out and said (`lacks`); where two languages have no parallel sentences, some of their
pairs are held out for distances. What is learned never holds a sentence that is asked or measured, by hash of the text.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path

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
from xlprobe.data.data_folder import detached
from xlprobe.data.parallel import match_conllu

__all__ = ["LanguageFiles", "LanguageTable"]

TASKS = ("pos", "topic")
LEAST = 4  # sentences of a test, pairs of a distance
SHARE = 5  # one pair in so many, at most, is held out of a bitext


@dataclass(frozen=True)
class LanguageFiles:
    """The files of one language; a path is relative to the recipe's `data`, or to the current folder.

    Attributes:
        ud_train: CoNLL-U to learn tags from.
        ud_test: CoNLL-U whose tags are asked.
        parallel: CoNLL-U with the sentences of other languages' `parallel`, matched by `sent_id`.
        sib: Folder with SIB-200's train.tsv and test.tsv, or one of them.
        bitext: Translation pairs by the other language: a file with this language's side first, or both sides' files.
    """

    ud_train: str = ""
    ud_test: str = ""
    parallel: str = ""
    sib: str = ""
    bitext: dict[str, str | tuple[str, ...]] = field(default_factory=dict)

    def paths(self) -> dict[str, str]:
        """Every file that is named, by its key in the table."""
        named = {key: getattr(self, key) for key in ("ud_train", "ud_test", "parallel", "sib")}
        for other, files in self.bitext.items():
            for i, file in enumerate((files,) if isinstance(files, str) else files):
                named[f"bitext.{other}[{i}]"] = file
        return {key: path for key, path in named.items() if path}


class LanguageTable:
    """The text of `languages`; each file is read when it is first needed.

    Args:
        languages: The files by the language's code.
        root: The folder to which paths are relative.
        held_out: How many parallel sentences are kept for distances, at most.
        learn: The language in which tasks are learned for all pairs; by default the source of each pair.

    Attributes:
        pairs: The pairs that have a bitext, OTHER-LANGUAGE as the table names them.

    Raises:
        InputError: No bitext, a code with another character than a letter, digit or _, or a file that is not there.

    >>> LanguageTable({"kk": LanguageFiles()})
    Traceback (most recent call last):
        ...
    reports.errors.InputError: languages: expected a bitext of two of them, found none; say bitext.ja = ...
    """

    origin = "the files of the recipe's languages"

    def __init__(
        self,
        languages: Mapping[str, LanguageFiles],
        *,
        root: str | Path = ".",
        held_out: int = 300,
        learn: str | None = None,
    ) -> None:
        self.languages, self.root, self.n_held_out, self.learn = dict(languages), Path(root), held_out, learn
        bitexts: dict[frozenset[str], tuple[str, str]] = {}
        for code, files in self.languages.items():
            _check_code(code)
            for key, path in files.paths().items():
                if not (self.root / path).exists():
                    raise InputError(
                        f"languages.{code}.{key}: expected a file, found none at {self.root / path}"
                    )
            for other in files.bitext:
                _check_code(other)
                if frozenset((code, other)) in bitexts or other == code:
                    raise InputError(
                        f"languages.{code}.bitext.{other}: expected the bitext of a pair once, of two languages"
                    )
                bitexts[frozenset((code, other))] = (code, other)
        if not bitexts:
            raise InputError(
                "languages: expected a bitext of two of them, found none; say bitext.ja = ... in [languages.kk]"
            )
        if learn is not None and learn not in self.languages:
            raise InputError(f"learn: expected one of {', '.join(self.languages)}, found {learn!r}")
        self._bitexts = bitexts
        self.pairs = tuple(f"{other}-{code}" for code, other in bitexts.values())
        self._left: dict[str, int] = {}

    # -- what there is -------------------------------------------------------------------------------------

    def accepts(self, pair: str) -> bool:
        """Whether there is a bitext of the pair, in either direction."""
        return frozenset(pair.split("-")) in self._bitexts and pair.count("-") == 1

    def source(self, pair: str) -> str:
        """The language in which the pair's tasks are learned."""
        return self.learn or pair.split("-")[0]

    def lacks(self, pair: str, task: str) -> str:
        """Why the task cannot be studied on the pair; empty where it can."""
        source, target = self.source(pair), pair.split("-")[1]
        if self._path(source, task, "train") is None:
            return f"{source} has no text to learn {task} from ({_KEYS[task, 'train']})"
        if self._path(target, task, "test") is None:
            return f"{target} has no text in which {task} is asked ({_KEYS[task, 'test']})"
        return ""

    def measured_on(self, pair: str) -> str:
        """What the pair's distances are taken on, in words."""
        if all(self._files(code).parallel for code in pair.split("-")):
            return "parallel sentences, matched by sent_id"
        return "pairs held out of the bitext, because the two languages have no parallel sentences"

    # -- what is learned -----------------------------------------------------------------------------------

    @lru_cache(maxsize=16)  # noqa: B019 (a table lives as long as its study)
    def bitext(self, pair: str) -> Bitext:
        """The pair's translations, its source first, without the sentences that are asked or measured."""
        pairs = self._turned(pair)
        kept = [
            i for i in range(len(pairs)) if not any(map(self._judges, (pairs.source[i], pairs.target[i])))
        ]
        self._left[f"bitext {pair}"] = len(pairs) - len(kept)
        if not kept:
            raise InputError(f"data: no pairs of {pair} are left without the sentences that are asked")
        return Bitext(tuple(pairs.source[i] for i in kept), tuple(pairs.target[i] for i in kept))

    @lru_cache(maxsize=32)  # noqa: B019
    def learned(self, task: str, language: str) -> Labelled | None:
        """The sentences of a language from which a task is learned; None where there are none."""
        path = self._path(language, task, "train")
        if path is None:
            return None
        corpus = _read(task, path)
        kept = [i for i, words in enumerate(corpus.words) if not self._judges(words)]
        self._left[f"{task} {language}"] = len(corpus) - len(kept)
        return _rows(corpus, kept)

    def pretraining(self) -> dict[str, list[str]]:
        """The sentences of each language for pre-training, once each: those of tags and of the bitexts."""
        sentences: dict[str, dict[str, None]] = {}
        for code in self.languages:
            corpus = self.learned("pos", code)
            if corpus is not None:
                sentences[code] = dict.fromkeys(map(" ".join, corpus.words))
        for pair in self.pairs:
            bitext = self.bitext(pair)
            for code, side in zip(pair.split("-"), (bitext.source, bitext.target), strict=True):
                sentences.setdefault(code, {}).update(dict.fromkeys(map(" ".join, side)))
        return {code: list(texts) for code, texts in sentences.items()}

    # -- what is asked and measured ------------------------------------------------------------------------

    @lru_cache(maxsize=32)  # noqa: B019
    def asked(self, task: str, language: str) -> Labelled | None:
        """The sentences of a language in which a task is asked, without those measured; None where there are none."""
        path = self._path(language, task, "test")
        if path is None:
            return None
        corpus = _read(task, path)
        kept = [i for i, words in enumerate(corpus.words) if text_hash(words) not in self._measured_hashes]
        if len(kept) < LEAST:
            raise InputError(
                f"held_out: {path} has {len(corpus)} sentences, of which {len(kept)} are left to be asked beside those "
                f"held out for distances; expected at least {LEAST}: hold fewer out"
            )
        return _rows(corpus, kept)

    @lru_cache(maxsize=32)  # noqa: B019
    def held_out(self, pair: str) -> Bitext:
        """The sentences for distances, the pair's source first: parallel ones, or pairs held out of the bitext."""
        a, b = pair.split("-")
        paths = [self._files(code).parallel for code in (a, b)]
        if all(paths):
            matched = match_conllu(*(self.root / path for path in paths)).bitext
            at_most = len(matched) // 2 if self._also_asked(a, b) else len(matched)
        else:
            matched = self._turned(pair)
            at_most = len(matched) // SHARE
        n = min(self.n_held_out, at_most)
        if n < LEAST:
            raise InputError(
                f"data: {pair} has {len(matched)} pairs of sentences, too few to hold {LEAST} out for distances; give "
                "both languages `parallel`, or more bitext"
            )
        order = sorted(
            range(len(matched)), key=lambda i: text_hash(min(matched.source[i], matched.target[i]))
        )[:n]
        return Bitext(tuple(matched.source[i] for i in order), tuple(matched.target[i] for i in order))

    # -- leaks ---------------------------------------------------------------------------------------------

    @property
    def left_out(self) -> dict[str, int]:
        """Sentences (or pairs) left out of each set that was read so far, because they are asked or measured."""
        return dict(self._left)

    def overlap(self, *, pretraining: Sequence[str | Words] = ()) -> pd.DataFrame:
        """What alignment, tasks, tests, distances (and `pretraining`) share: `xlprobe.data.corpora.overlap`."""
        texts: dict[str, Sequence[str | Words]] = {"pre-training": pretraining} if pretraining else {}
        for pair in self.pairs:
            texts[f"alignment {pair}"] = [*self.bitext(pair).source, *self.bitext(pair).target]
        for task, name in (("pos", "tags"), ("topic", "topics")):
            for part, of in (("train", self.learned), ("test", self.asked)):
                corpora = [corpus for code in self.languages if (corpus := of(task, code)) is not None]
                if corpora:
                    texts[f"{name}: {part}"] = [words for corpus in corpora for words in corpus.words]
        texts["distances"] = [w for p in self.pairs for s in _sides(self.held_out(p)) for w in s]
        return overlap(texts)

    @cached_property
    def hashes(self) -> dict[str, str]:
        """sha256 of each file of the table, by its path there."""
        files: list[str] = []
        for code, entry in self.languages.items():
            files += [path for key, path in entry.paths().items() if key != "sib"]
            found = [self._path(code, "topic", part) for part in ("train", "test")]
            files += [str(path.relative_to(self.root)) for path in found if path is not None]
        return {
            file: hashlib.sha256((self.root / file).read_bytes()).hexdigest() for file in sorted(set(files))
        }

    # -- files ---------------------------------------------------------------------------------------------

    def _files(self, code: str) -> LanguageFiles:
        return self.languages.get(code, LanguageFiles())

    def _path(self, code: str, task: str, part: str) -> Path | None:
        files = self._files(code)
        if task == "pos":
            named = files.ud_train if part == "train" else files.ud_test
            return self.root / named if named else None
        path = self.root / files.sib / f"{part}.tsv"
        return path if files.sib and path.is_file() else None

    def _also_asked(self, *codes: str) -> bool:
        """Whether a language's parallel sentences are its test too, so that some must be left to be asked."""
        return any(self._files(code).parallel == self._files(code).ud_test for code in codes)

    def _turned(self, pair: str) -> Bitext:
        if not self.accepts(pair):
            raise InputError(f"pair: expected one of {', '.join(self.pairs)}, found {pair!r}")
        code, other = self._bitexts[frozenset(pair.split("-"))]
        pairs = self._read_bitext(code, other)
        return pairs if pair == f"{code}-{other}" else Bitext(pairs.target, pairs.source)

    @lru_cache(maxsize=16)  # noqa: B019
    def _read_bitext(self, code: str, other: str) -> Bitext:
        files = self.languages[code].bitext[other]
        named = (files,) if isinstance(files, str) else files
        if len(named) not in (1, 2):
            raise InputError(
                f"languages.{code}.bitext.{other}: expected one or two files, found {len(named)}"
            )
        pairs = load_bitext(*(self.root / file for file in named))
        sides = [tuple(map(detached, side)) for side in _sides(pairs)]
        return Bitext(sides[0], sides[1])

    @cached_property
    def _measured_hashes(self) -> frozenset[str]:
        return frozenset(text_hash(w) for p in self.pairs for s in _sides(self.held_out(p)) for w in s)

    @cached_property
    def _judging_hashes(self) -> frozenset[str]:
        corpora = [self.asked(task, code) for task in TASKS for code in self.languages]
        asked = frozenset(
            text_hash(words) for corpus in corpora if corpus is not None for words in corpus.words
        )
        return asked | self._measured_hashes

    def _judges(self, words: Words) -> bool:
        return text_hash(words) in self._judging_hashes


_KEYS = {
    ("pos", "train"): "ud_train",
    ("pos", "test"): "ud_test",
    ("topic", "train"): "sib, with train.tsv",
    ("topic", "test"): "sib, with test.tsv",
}


def _check_code(code: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9_]+", code):
        raise InputError(
            f"languages: expected codes of letters, digits and _, as kk or zh_Hant, found {code!r} (a pair is JA-KK)"
        )


def _read(task: str, path: Path) -> Labelled:
    if task == "pos":
        return load_conllu(path)
    corpus = load_sib200(path)
    return Labelled(tuple(map(detached, corpus.words)), corpus.labels, corpus.ids)


def _rows(corpus: Labelled, rows: Sequence[int]) -> Labelled:
    words, labels = (tuple(side[i] for i in rows) for side in (corpus.words, corpus.labels))
    return Labelled(words, labels, tuple(corpus.ids[i] for i in rows))


def _sides(bitext: Bitext) -> tuple[tuple[Words, ...], tuple[Words, ...]]:
    return bitext.source, bitext.target
