"""A data folder of the real corpora's shape, with sentences made up here: six meanings of words, written five ways."""

from __future__ import annotations

import random
from pathlib import Path

from xlprobe.data.data_folder import CODES

TAGS = {"DET": 2, "ADJ": 6, "NOUN": 12, "VERB": 6}
SHAPE = ("DET", "ADJ", "NOUN", "VERB", "DET", "NOUN")
TOPICS = ("sports", "travel", "politics")
PUD, EWT, PAIRS, TEXTS = 40, 60, 40, 24


def write_data(folder: Path, *, languages: tuple[str, ...] = ("de", "ru"), seed: int = 0) -> Path:
    """`folder` with EWT, PUD, SIB-200 and Tatoeba of English and `languages`; the folder."""
    draw = random.Random(seed)
    sentences = list(dict.fromkeys(_meaning(draw) for _ in range(400)))
    pud, ewt, pairs = (sentences[at : at + n] for at, n in ((0, PUD), (40, EWT), (100, PAIRS)))
    _conllu(folder / "ud" / "UD_English-EWT" / "en_ewt-ud-train.conllu", ewt, "en")
    for language in ("en", *languages):
        names = CODES[language]
        _conllu(folder / "ud" / f"UD_{names.ud}-PUD" / f"{language}_pud-ud-test.conllu", pud, language)
        for part, at in (("train", 150), ("test", 180)):
            rows = ["index_id\tcategory\ttext"]
            rows += [
                f"{i}\t{TOPICS[i % 3]}\t{' '.join(_forms(m, language))}."
                for i, m in enumerate(sentences[at : at + TEXTS])
            ]
            write(folder / "sib200" / names.flores / f"{part}.tsv", rows)
        if language != "en":
            for code in ("en", language):
                file = folder / "tatoeba" / f"tatoeba.{names.iso}-eng.{CODES[code].iso}"
                write(file, [f"{' '.join(_forms(meaning, code))}." for meaning in pairs])
    return folder


def write(file: Path, lines: list[str]) -> None:
    """The lines, in folders made for them."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _meaning(draw: random.Random) -> tuple[int, ...]:
    return tuple(draw.randrange(TAGS[tag]) for tag in SHAPE)


def _forms(meaning: tuple[int, ...], language: str) -> list[str]:
    ends = {"en": "o", "de": "en", "tr": "ler", "hi": "अ", "ru": "ы"}
    return [f"{tag[0].lower()}a{i}{ends[language]}" for tag, i in zip(SHAPE, meaning, strict=True)]


def _conllu(file: Path, sentences: list[tuple[int, ...]], language: str) -> None:
    lines = []
    for number, meaning in enumerate(sentences):
        lines.append(f"# sent_id = n{number:03}")
        words = [*zip(_forms(meaning, language), SHAPE, strict=True), (".", "PUNCT")]
        lines += [f"{i}\t{form}\t_\t{tag}\t_\t_\t0\troot\t_\t_" for i, (form, tag) in enumerate(words, 1)]
        lines.append("")
    write(file, lines)
