"""The data folder of four pairs, de-en, en-kk, ja-kk and ko-kk, made of corpora as their publishers name the files.

    python -m xlprobe.recipes.paper_pairs DATA OUT

Steps:

1. Tags: Universal Dependencies, copied. German, Japanese and Korean are learned from their dev files, because their
   training files are larger than a small study needs; the recipe `paper-pairs.toml` names the files.
2. Topics, and the bitext of ja-kk and ko-kk: SIB-200's texts are the same in every language, by id. Half of all ids are
   for alignment, the other half for the task, in *every* language: a text that is asked in Kazakh is aligned in none.
   The test part is the task's; of train and dev the ids with the lowest hashes are for alignment.
3. Bitext with English: Tatoeba, copied.
4. `check_pairs`: no id is in both halves, and no text of a language.

`--recipe FILE --encoder FOLDER` also writes OUT/encoder: the encoder with the tokens of the recipe's text alone
(`xlprobe.encoders.used_tokens`), with which a study fits on a CPU.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from experiments import config
from reports.errors import InputError
from reports.files import occupied
from xlprobe.data.corpora import Words, load_bitext, load_sib200, text_hash
from xlprobe.data.data_folder import Names
from xlprobe.data.languages import LanguageTable
from xlprobe.data.lines import text_lines
from xlprobe.encoders.used_tokens import keep_used_tokens
from xlprobe.recipes.real_text import RealTextRecipe

__all__ = ["check_pairs", "write_pairs"]

CODES = {
    "de": Names("German", "deu", "deu_Latn"),
    "en": Names("English", "eng", "eng_Latn"),
    "ja": Names("Japanese", "jpn", "jpn_Jpan"),
    "kk": Names("Kazakh", "kaz", "kaz_Cyrl"),
    "ko": Names("Korean", "kor", "kor_Hang"),
}
TREEBANKS = (
    "UD_English-EWT/en_ewt-ud-train.conllu",
    "UD_English-EWT/en_ewt-ud-test.conllu",
    "UD_English-PUD/en_pud-ud-test.conllu",
    "UD_German-GSD/de_gsd-ud-dev.conllu",
    "UD_German-GSD/de_gsd-ud-test.conllu",
    "UD_German-PUD/de_pud-ud-test.conllu",
    "UD_Japanese-GSD/ja_gsd-ud-dev.conllu",
    "UD_Japanese-GSD/ja_gsd-ud-test.conllu",
    "UD_Kazakh-KTB/kk_ktb-ud-test.conllu",
    "UD_Korean-GSD/ko_gsd-ud-dev.conllu",
    "UD_Korean-GSD/ko_gsd-ud-test.conllu",
)
SIB_PAIRS = ("ja-kk", "ko-kk")
IDS = "sib200.ids"  # of the lines of both bitexts
HEADER = "index_id\tcategory\ttext"


def write_pairs(data: str | Path, out: str | Path) -> dict[str, int]:
    """Write the folder; how many ids each use has.

    Args:
        data: Folder with ud, sib200 and tatoeba.
        out: A new or an empty folder.

    Raises:
        InputError: A file that is not there, texts that are not parallel, an occupied folder, or halves that overlap.
    """
    source, target = Path(data), Path(out)
    if occupied(target):
        raise InputError(f"out: expected a new or an empty folder, found files in {target}; choose another")
    for name in TREEBANKS:
        _copy(source / "ud" / name, target / "ud" / Path(name).name)
    for code in ("de", "kk", "ja", "ko"):
        for side in (code, "en"):
            file = f"tatoeba.{CODES[code].iso}-eng.{CODES[side].iso}"
            _copy(source / "tatoeba" / file, target / "bitext" / f"{code}-en.{side}")
    texts = {code: _rows(source / "sib200" / names.flores) for code, names in CODES.items()}
    movable, asked = _halves(texts)
    half = (len(movable) + len(asked)) // 2
    aligned, learned = movable[:half], movable[half:]
    for code, names in CODES.items():
        for part, ids in (("train", learned), ("test", asked)):
            lines = [HEADER, *("\t".join((i, *texts[code][i][1:])) for i in ids)]
            _write(target / "sib200" / names.flores / f"{part}.tsv", lines)
    for pair in SIB_PAIRS:
        for code in pair.split("-"):
            _write(target / "bitext" / f"{pair}.{code}", [texts[code][i][2] for i in aligned])
    _write(target / "bitext" / IDS, aligned)
    check_pairs(target)
    return {"alignment": len(aligned), "task: train": len(learned), "task: test": len(asked)}


def check_pairs(folder: str | Path) -> None:
    """Refuse a folder in which SIB-200's halves overlap, by id (in any two languages) or by text (in one).

    Args:
        folder: What `write_pairs` wrote.

    Raises:
        InputError: What stands in both halves, or a bitext whose lines are not those of the ids.
    """
    root = Path(folder)
    aligned = text_lines(root / "bitext" / IDS)
    bitexts = {
        pair: load_bitext(*(root / "bitext" / f"{pair}.{code}" for code in pair.split("-")))
        for pair in SIB_PAIRS
    }
    for code, names in CODES.items():
        for part in ("train", "test"):
            file = root / "sib200" / names.flores / f"{part}.tsv"
            corpus = load_sib200(file)
            if both := sorted(set(aligned) & set(corpus.ids)):
                raise InputError(
                    f"{file}: {len(both)} of SIB-200's ids are aligned on too (in {IDS}), the first {both[0]}; a text "
                    "is for alignment or for the task, in all languages"
                )
            hashes = set(map(text_hash, corpus.words))
            for pair, bitext in bitexts.items():
                if code not in pair.split("-"):
                    continue
                side = (bitext.source, bitext.target)[pair.split("-").index(code)]
                if shared := [words for words in side if text_hash(words) in hashes]:
                    raise InputError(
                        f"{file}: {len(shared)} of its texts stand in the bitext of {pair} too, the first "
                        f"{' '.join(shared[0])[:40]!r}"
                    )
    for pair, bitext in bitexts.items():
        if len(bitext) != len(aligned):
            raise InputError(
                f"bitext {pair}: expected a line for each of {len(aligned)} ids, found {len(bitext)}"
            )


def texts_of(table: LanguageTable, pairs: Iterable[str]) -> list[Words]:
    """All sentences that a study of the pairs may send through its encoder."""
    sentences: dict[Words, None] = {}
    for pair in pairs:
        for bitext in (table.bitext(pair), table.held_out(pair)):
            sentences |= dict.fromkeys((*bitext.source, *bitext.target))
    for task in ("pos", "topic"):
        for code in table.languages:
            for corpus in (table.learned(task, code), table.asked(task, code)):
                sentences |= dict.fromkeys(corpus.words if corpus is not None else ())
    return list(sentences)


def main(argv: Sequence[str] | None = None) -> None:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("data", help="folder with ud, sib200 and tatoeba")
    parser.add_argument("out", help="new folder")
    parser.add_argument(
        "--recipe", help="also write OUT/encoder, with the tokens of this recipe's text alone"
    )
    parser.add_argument("--encoder", help="of which encoder")
    options = parser.parse_args(argv)
    sys.stdout.write(f"{write_pairs(options.data, options.out)}\n")
    if options.recipe:
        recipe = replace(
            config.load(options.recipe, RealTextRecipe, experiment="real_text"), data=options.out
        )
        table = recipe.folder()
        assert isinstance(table, LanguageTable)
        texts = texts_of(table, recipe.pairs or table.pairs)
        kept = keep_used_tokens(options.encoder, texts, Path(options.out) / "encoder")
        sys.stdout.write(f"{kept} tokens\n")


def _copy(file: Path, target: Path) -> None:
    if not file.is_file():
        raise InputError(f"data: expected {file}, found no such file")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(file, target)


def _write(file: Path, lines: Sequence[str]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _rows(folder: Path) -> dict[str, tuple[str, str, str]]:
    """Part, topic and text by id."""
    rows: dict[str, tuple[str, str, str]] = {}
    for part in ("train", "dev", "test"):
        lines = text_lines(folder / f"{part}.tsv")
        if lines[:1] != [HEADER]:
            raise InputError(f"{folder / part}.tsv: expected the columns {HEADER.split()}, found {lines[:1]}")
        for line in lines[1:]:
            name, topic, text = line.split("\t")
            if name in rows:
                raise InputError(f"{folder / part}.tsv: the id {name} occurs twice; expected each once")
            rows[name] = (part, topic, text)
    return rows


def _halves(texts: dict[str, dict[str, tuple[str, str, str]]]) -> tuple[list[str], list[str]]:
    """The ids of train and dev in the order of their hashes, and those of test; the same in every language."""
    first = texts["en"]
    parts = {name: part for name, (part, _, _) in first.items()}
    for code, rows in texts.items():
        if {name: part for name, (part, _, _) in rows.items()} != parts:
            raise InputError(f"sib200: the ids of {CODES[code].flores} are not those of {CODES['en'].flores}")
    movable = sorted((name for name, part in parts.items() if part != "test"), key=text_hash)
    return movable, [name for name, part in parts.items() if part == "test"]


if __name__ == "__main__":
    main()
