"""Parallel treebanks: the same sentences in two CoNLL-U files, matched by `sent_id`, in whatever order they stand."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from reports.errors import InputError
from xlprobe.data.corpora import Bitext, load_conllu, text_lines

__all__ = ["Matched", "match_conllu"]


@dataclass(frozen=True)
class Matched:
    """Two treebanks' common sentences.

    Attributes:
        bitext: The pairs, in the order of the source's file.
        ids: Their `sent_id`s.
        only_source: Sentences of the source without a partner.
        only_target: Sentences of the target without a partner.
    """

    bitext: Bitext
    ids: tuple[str, ...]
    only_source: int
    only_target: int


def match_conllu(source: str | Path, target: str | Path) -> Matched:
    r"""The sentences that have the same `sent_id` in both files.

    Raises:
        InputError: A sentence without `sent_id`, one that occurs twice, no common one, or what `load_conllu` refuses.

    >>> import tempfile
    >>> row = "\n1\t{}\t_\tINTJ\t_\t_\t0\troot\t_\t_\n\n"
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     a, b = Path(folder) / "a.conllu", Path(folder) / "b.conllu"
    ...     _ = a.write_text("# sent_id = n1" + row.format("Hi") + "# sent_id = n2" + row.format("Bye"))
    ...     _ = b.write_text("# sent_id = n2" + row.format("Tschüss"))
    ...     matched = match_conllu(a, b)
    >>> matched.bitext.source, matched.bitext.target, matched.only_source
    ((('Bye',),), (('Tschüss',),), 1)
    """
    sides = []
    for path in (source, target):
        corpus = load_conllu(path)
        named = sum(
            line[1:].partition("=")[0].strip() == "sent_id" for line in text_lines(path) if line[:1] == "#"
        )
        if named < len(corpus):
            raise InputError(
                f"{path}: expected a `# sent_id = ...` before each of {len(corpus)} sentences, found {named}; parallel "
                "treebanks are matched by it"
            )
        words = dict(zip(corpus.ids, corpus.words, strict=True))
        if len(words) < len(corpus):
            twice = next(name for name in corpus.ids if corpus.ids.count(name) > 1)
            raise InputError(f"{path}: sent_id {twice!r} occurs twice; expected each once")
        sides.append(words)
    ids = tuple(name for name in sides[0] if name in sides[1])
    if not ids:
        raise InputError(f"{source} and {target}: no sent_id stands in both; they are not parallel")
    left, right = (tuple(side[name] for name in ids) for side in sides)
    return Matched(Bitext(left, right), ids, len(sides[0]) - len(ids), len(sides[1]) - len(ids))
