"""A table of the user's languages: any pair, what is left out, parallel treebanks, the study and its dry run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from reports.errors import InputError
from tests.xl_files import write, write_data
from tests.xl_tiny import build, tiny_encoder
from xlprobe.cli import main
from xlprobe.data.corpora import load_conllu, text_hash
from xlprobe.data.languages import LanguageFiles, LanguageTable
from xlprobe.data.parallel import match_conllu
from xlprobe.transfer.file_lab import FileLab
from xlprobe.transfer.result import Study

RECIPE = """
experiment = "real_text"
encoder = "{encoder}"
data = "{data}"
objectives = ["sentence"]
seeds = 1
shuffled = false
device = "cpu"

[sizes]
train = 40
held_out = 12
align_steps = 2
finetune_steps = 2
head_steps = 2
probe_batches = 2
batch = 8

[languages.de]
ud_train = "train.de.conllu"
ud_test = "ud/UD_German-PUD/de_pud-ud-test.conllu"
parallel = "ud/UD_German-PUD/de_pud-ud-test.conllu"
bitext.ru = ["de-ru.de", "de-ru.ru"]
[languages.ru]
ud_test = "ud/UD_Russian-PUD/ru_pud-ud-test.conllu"
parallel = "ud/UD_Russian-PUD/ru_pud-ud-test.conllu"
sib = "sib200/rus_Cyrl"
bitext.tr = "ru-tr.tsv"
[languages.tr]
sib = "sib200/tur_Latn"
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of German, Russian and Turkish; English stands on neither side of any pair."""
    folder = write_data(tmp_path_factory.mktemp("data"), languages=("de", "ru", "tr"))
    for a, b in (("deu", "de"), ("rus", "ru")):
        text = (folder / "tatoeba" / f"tatoeba.{a}-eng.{a}").read_text("utf-8")
        (folder / f"de-ru.{b}").write_text(text, "utf-8")
    sides = [
        (folder / "tatoeba" / f"tatoeba.{a}-eng.{a}").read_text("utf-8").splitlines() for a in ("rus", "tur")
    ]
    write(folder / "ru-tr.tsv", ["\t".join(pair) for pair in zip(*sides, strict=True)])
    train = (folder / "ud" / "UD_English-EWT" / "en_ewt-ud-train.conllu").read_text("utf-8")
    (folder / "train.de.conllu").write_text(train.replace("o\t_", "en\t_"), "utf-8")
    return folder


@pytest.fixture(scope="module")
def recipe(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("recipe")
    encoder = build("xlm-roberta", root / "encoder", n_layers=2, d_model=16)
    (root / "recipe.toml").write_text(RECIPE.format(encoder=encoder, data=folder), "utf-8")
    return root / "recipe.toml"


def table(folder: Path, **changes: Any) -> LanguageTable:
    pud = {
        code: f"ud/UD_{name}-PUD/{code}_pud-ud-test.conllu"
        for code, name in (("de", "German"), ("ru", "Russian"))
    }
    languages = {
        "de": LanguageFiles("train.de.conllu", pud["de"], pud["de"], bitext={"ru": ("de-ru.de", "de-ru.ru")}),
        "ru": LanguageFiles("", pud["ru"], pud["ru"], "sib200/rus_Cyrl", {"tr": "ru-tr.tsv"}),
        "tr": LanguageFiles(sib="sib200/tur_Latn"),
    }
    return LanguageTable(languages | changes.pop("languages", {}), root=folder, held_out=12, **changes)


# -- the table ---------------------------------------------------------------------------------------------------


def test_a_pair_is_named_in_either_direction(folder: Path) -> None:
    data = table(folder)
    assert data.pairs == ("ru-de", "tr-ru")
    assert data.accepts("de-ru")
    assert not data.accepts("de-tr")
    there, back = data.bitext("de-ru"), data.bitext("ru-de")
    assert (there.source, there.target) == (back.target, back.source)
    assert all(word.endswith("en") for word in there.source[0][:-1])
    assert data.held_out("de-ru").source == data.held_out("ru-de").target


def test_what_the_files_do_not_allow_is_said(folder: Path) -> None:
    data = table(folder)
    assert data.lacks("de-ru", "pos") == ""
    assert data.lacks("ru-de", "pos") == "ru has no text to learn pos from (ud_train)"
    assert data.lacks("ru-tr", "topic") == ""
    assert data.lacks("ru-tr", "pos") == "ru has no text to learn pos from (ud_train)"
    assert data.lacks("de-ru", "topic") == "de has no text to learn topic from (sib, with train.tsv)"
    assert table(folder, learn="de").lacks("tr-ru", "pos") == ""


def test_nothing_learned_is_asked_or_measured(folder: Path) -> None:
    data = table(folder)
    judged = {
        text_hash(w)
        for p in ("de-ru", "tr-ru")
        for s in (data.held_out(p).source, data.held_out(p).target)
        for w in s
    }
    for code in ("de", "ru"):
        corpus = data.asked("pos", code)
        assert corpus is not None
        assert not judged & set(map(text_hash, corpus.words))
    asked = [
        corpus.words
        for task in ("pos", "topic")
        for c in ("de", "ru", "tr")
        if (corpus := data.asked(task, c))
    ]
    judged |= {text_hash(words) for corpus in asked for words in corpus}
    learned = [w for p in data.pairs for s in (data.bitext(p).source, data.bitext(p).target) for w in s]
    for task, code in (("pos", "de"), ("topic", "tr"), ("topic", "ru")):
        corpus = data.learned(task, code)
        assert corpus is not None
        learned += corpus.words
    assert not judged & set(map(text_hash, learned))
    assert data.left_out["bitext tr-ru"] == 8  # held out of 40 pairs: Turkish has no parallel treebank
    assert data.overlap().query("b == 'distances'")["shared"].sum() == 0


def test_a_file_that_is_not_there_and_a_pair_named_twice_are_refused(folder: Path) -> None:
    with pytest.raises(
        InputError, match=r"languages\.kk\.ud_test: expected a file, found none at .*kk\.conllu"
    ):
        table(folder, languages={"kk": LanguageFiles(ud_test="kk.conllu")})
    with pytest.raises(InputError, match=r"languages\.tr\.bitext\.ru: expected the bitext of a pair once"):
        table(folder, languages={"tr": LanguageFiles(bitext={"ru": "ru-tr.tsv"})})
    with pytest.raises(InputError, match=r"expected codes of letters, digits and _, .* found 'zh-Hant'"):
        table(folder, languages={"zh-Hant": LanguageFiles()})
    with pytest.raises(InputError, match="learn: expected one of de, ru, tr, found 'en'"):
        table(folder, learn="en")


def test_the_laboratory_learns_in_each_pairs_source(folder: Path) -> None:
    lab = FileLab(tiny_encoder(), table(folder))
    german = table(folder).learned("pos", "de")
    assert german is not None
    assert lab._task("pos", lab.source("de-ru")).train.words == german.words
    assert lab.source("tr-ru") == "tr"
    assert FileLab(tiny_encoder(), table(folder, learn="de")).source("tr-ru") == "de"


# -- parallel treebanks ------------------------------------------------------------------------------------------


def treebank(file: Path, rows: dict[str, str], *, named: bool = True) -> Path:
    lines: list[str] = []
    for name, word in rows.items():
        lines += [f"# sent_id = {name}"] if named else []
        lines += [f"1\t{word}\t_\tX\t_\t_\t0\troot\t_\t_", ""]
    write(file, lines)
    return file


def test_treebanks_are_matched_by_sent_id_in_any_order(tmp_path: Path) -> None:
    a = treebank(tmp_path / "a.conllu", {"x1": "one", "x2": "two", "x3": "three"})
    b = treebank(tmp_path / "b.conllu", {"x3": "drei", "x9": "neun", "x1": "eins"})
    matched = match_conllu(a, b)
    assert matched.bitext.source == (("one",), ("three",))
    assert matched.bitext.target == (("eins",), ("drei",))
    assert (matched.ids, matched.only_source, matched.only_target) == (("x1", "x3"), 1, 1)
    # the oracle: by line they would not belong together
    assert load_conllu(a).words[0] != ("three",)
    assert load_conllu(b).words[0] == ("drei",)


def test_treebanks_that_are_not_parallel_are_refused(tmp_path: Path) -> None:
    a = treebank(tmp_path / "a.conllu", {"x1": "one", "x2": "two"})
    with pytest.raises(
        InputError, match=r"expected a `# sent_id = \.\.\.` before each of 2 sentences, found 0"
    ):
        match_conllu(a, treebank(tmp_path / "b.conllu", {"1": "eins", "2": "zwei"}, named=False))
    with pytest.raises(InputError, match="no sent_id stands in both"):
        match_conllu(a, treebank(tmp_path / "c.conllu", {"y1": "eins"}))
    twice = tmp_path / "d.conllu"
    twice.write_text(a.read_text() + a.read_text())
    with pytest.raises(InputError, match="sent_id 'x1' occurs twice"):
        match_conllu(twice, a)


# -- the command line --------------------------------------------------------------------------------------------


def printed(capsys: pytest.CaptureFixture[str], *argv: str | Path) -> dict[str, Any]:
    assert main([*map(str, argv), "--json", "--quiet"]) == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


def refused(capsys: pytest.CaptureFixture[str], *argv: str | Path) -> str:
    assert main([*map(str, argv), "--quiet"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    return error


def test_a_study_without_english(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    result = printed(capsys, "study", "--recipe", recipe, "--pairs", "de-ru,tr-ru", "--out", out)
    assert set(result["pairs"]) == {"de-ru", "tr-ru"}
    cells = Study.load(out / "results" / "study").cells
    assert cells[["pair", "task"]].values.tolist() == [["de-ru", "pos"], ["tr-ru", "topic"]]
    page = (out / "report.html").read_text("utf-8")
    assert "Left out, topic on de-ru: de has no text to learn topic from" in page
    assert "Distances of tr-ru: pairs held out of the bitext" in page
    assert not [line for line in page.splitlines() if "Tatoeba" in line and "bitext" in line]


@pytest.mark.parametrize(
    ("setting", "match"),
    [
        ("pairs=['de-tr']", "pairs: expected some of ru-de, tr-ru, found 'de-tr'"),
        ("tasks=['ner']", "tasks: expected some of pos, topic, found 'ner'"),
        ("objectives=['simcse']", "objectives: expected some of mlm"),
        ("encoder='./no/such'", "no such folder"),
        ("sizes.batch=0", "sizes.batch: expected at least 1, found 0"),
        ("learn='kk'", "learn: expected one of de, ru, tr, found 'kk'"),
        ("pairs=['ru-de']", "no task can be studied on any pair: ru has no text to learn pos from"),
    ],
)
def test_a_dry_run_refuses_what_the_run_refuses(
    recipe: Path, tmp_path: Path, setting: str, match: str, capsys: pytest.CaptureFixture[str]
) -> None:
    dry = refused(capsys, "run", recipe, setting, "--dry-run")
    assert match in dry
    assert refused(capsys, "run", recipe, setting, "--out", tmp_path / "run") == dry
    assert not (tmp_path / "run" / "cases").exists()


def test_an_encoder_without_a_head_is_refused_masked_modelling_before_it_starts(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder = tiny_encoder()
    encoder.model.save_pretrained(tmp_path / "bare")
    encoder.tokenizer.save_pretrained(tmp_path / "bare")
    capsys.readouterr()  # transformers' bar of writing
    settings = (f"encoder='{tmp_path / 'bare'}'", "objectives=['mlm','token']", "pairs=['de-ru']")
    for end in (("--dry-run",), ("--out", tmp_path / "run")):
        assert "objectives: mlm needs an LM head" in refused(capsys, "run", recipe, *settings, *end)


def test_a_dry_run_reads_the_text(
    folder: Path, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.conllu"
    bad.write_text("1\tHi\tX\n\n")
    setting = f"languages.de.ud_train='{bad}'"
    assert "bad.conllu: line 1: expected 10 columns" in refused(
        capsys, "run", recipe, setting, "pairs=['de-ru']", "--dry-run"
    )


def test_distances_on_her_files(folder: Path, recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    encoder = recipe.parent / "encoder"
    argv = ("distances", "--encoder", encoder, "--device", "cpu")
    result = printed(capsys, *argv, "--data", recipe, "--pair", "de-ru")
    assert {row["n"] for row in result["layers"]} == {12}
    pud = {
        code: folder / "ud" / f"UD_{name}-PUD" / f"{code}_pud-ud-test.conllu"
        for code, name in (("de", "German"), ("ru", "Russian"))
    }
    treebanks = printed(capsys, *argv, "--source", pud["de"], "--target", pud["ru"])
    assert {row["n"] for row in treebanks["layers"]} == {40}
    assert "pair: expected one of ru-de, tr-ru, found 'de-tr'" in refused(
        capsys, *argv, "--data", recipe, "--pair", "de-tr"
    )
    assert "pair: expected --data beside it" in refused(capsys, *argv, "--pair", "de-ru")
    assert "source: --data names the text" in refused(capsys, *argv, "--data", recipe, "--source", "x")
    assert "source: expected --source and --target" in refused(capsys, *argv, "--source", "x")


def test_gradients_on_her_pair(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ("gradients", "--encoder", recipe.parent / "encoder", "--device", "cpu")
    small = ("--batches", "2", "--batch", "8", "--head-steps", "2")
    result = printed(capsys, *argv, *small, "--data", recipe, "--pair", "de-ru")
    assert result["encoder"]["layer"] is None
    assert result["n"] == {"task": 2, "align": 2, "target": 2, "shuffled": 2}
    assert "was not trained on the embedded languages" in refused(capsys, *argv, *small)
    message = refused(capsys, *argv, *small, "--data", recipe, "--pair", "tr-ru")
    assert "task: pos cannot be studied on tr-ru: tr has no text to learn pos from" in message
