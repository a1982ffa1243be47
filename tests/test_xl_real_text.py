"""Real text: what a data folder gives and refuses, what is kept apart, the study end to end on made-up files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from transformers import XLMRobertaConfig, XLMRobertaModel

from experiments import config
from reports.errors import InputError
from tests.xl_files import EWT, PAIRS, PUD, TEXTS, write, write_data
from tests.xl_tiny import tiny_encoder
from xlprobe.cli import main
from xlprobe.data.corpora import text_hash
from xlprobe.data.data_folder import DataFolder, detached
from xlprobe.encoders.encoder import Encoder
from xlprobe.recipes.real_text import Pretraining, RealTextRecipe, balanced, data_path, pretraining_texts
from xlprobe.recipes.study import StudyRecipe
from xlprobe.training.loop import TrainingError
from xlprobe.transfer.file_lab import FileLab, FileSizes
from xlprobe.transfer.result import Study
from xlprobe.transfer.study import StudyConfig, transfer_study

SIZES = FileSizes(
    train=40, held_out=12, align_steps=2, finetune_steps=2, head_steps=2, probe_batches=2, batch=8
)
RECIPE = """
experiment = "real_text"
pairs = ["en-de"]
objectives = ["token"]
seeds = 1

[sizes]
train = 40
held_out = 12
align_steps = 2
finetune_steps = 2
head_steps = 2
probe_batches = 2
batch = 8

[pretrain.shape]
vocabulary = 130
d_model = 16
n_layers = 2
n_heads = 2
d_ffn = 32

[pretrain.training]
steps = 3
batch = 8
lr = 1e-3
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def data(folder: Path) -> DataFolder:
    return DataFolder(folder, held_out=12)


@pytest.fixture(scope="module")
def run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study, encoder and all, by the command line."""
    out = tmp_path_factory.mktemp("study")
    (out / "recipe.toml").write_text(RECIPE)
    argv = ["study", "--recipe", out / "recipe.toml", "--data", folder, "--out", out / "run"]
    assert main([*map(str, argv), "--quiet", "--json", "--device", "cpu"]) == 0
    return out / "run"


# -- the folder ------------------------------------------------------------------------------------------------


def test_every_set_has_the_sentences_of_its_files(data: DataFolder) -> None:
    assert data.pairs == ("en-de", "en-ru")
    assert (len(data.tagged), len(data.bitext("en-de"))) == (EWT, PAIRS)
    assert (len(data.tag_test("ru")), len(data.held_out("en-ru"))) == (PUD - 12, 12)
    assert (len(data.topics("de")), len(data.topic_test("de"))) == (TEXTS, TEXTS)
    assert data.left_out == {"tags en": 0, "bitext en-de": 0, "topics de": 0}


def test_held_out_sentences_are_the_same_in_every_language_and_never_asked(data: DataFolder) -> None:
    english, german = data.held_out("en-de").source, data.held_out("en-de").target
    assert data.held_out("en-ru").source == english
    stems = [
        [tuple(w.removesuffix(end) for w in s[:-1]) for s in side]
        for side, end in ((english, "o"), (german, "en"))
    ]
    assert stems[0] == stems[1]  # the same meanings in the same order
    assert not set(english) & set(data.tag_test("en").words)
    assert data.tag_test("en").ids == data.tag_test("de").ids


def test_a_copy_of_what_is_asked_is_left_out_of_what_is_learned_and_counted(tmp_path: Path) -> None:
    folder = write_data(tmp_path)
    asked = DataFolder(folder, held_out=12).tag_test("de").words[0]
    stem = folder / "tatoeba" / "tatoeba.deu-eng"
    for end, line in (("deu", " ".join(asked).upper()), ("eng", "a new one")):
        file = Path(f"{stem}.{end}")
        file.write_text(file.read_text("utf-8") + line + "\n", "utf-8")
    data = DataFolder(folder, held_out=12)
    bitext = data.bitext("en-de")
    assert (len(bitext), data.left_out["bitext en-de"]) == (PAIRS, 1)
    assert text_hash(asked) not in {text_hash(words) for words in bitext.target}
    assert "a new one" not in pretraining_texts(data)["en"]


def test_overlap_names_what_the_sets_share(data: DataFolder) -> None:
    texts = [text for some in pretraining_texts(data).values() for text in some]
    table = data.overlap(pretraining=texts).set_index(["a", "b"])["shared"]
    assert table["pre-training", "alignment en-de"] == 2 * PAIRS
    assert table["pre-training", "tags: train"] == EWT
    assert table["alignment en-de", "alignment en-ru"] == PAIRS  # English of both is the same here
    for judged in ("tags: test", "topics: test", "distances"):
        assert table.xs(judged, level="b").sum() == 0


@pytest.mark.parametrize(
    ("harm", "match"),
    [
        ("ud", "found no ud in"),
        ("sib200/rus_Cyrl/test.tsv", "test.tsv: expected a readable UTF-8 file"),
        ("tatoeba/tatoeba.deu-eng.eng", "tatoeba.deu-eng.eng: expected a readable UTF-8 file"),
        ("tatoeba", "found no tatoeba in"),
    ],
)
def test_what_is_missing_is_named(tmp_path: Path, harm: str, match: str) -> None:
    folder = write_data(tmp_path / "data")
    (folder / harm).rename(tmp_path / "away")
    with pytest.raises(InputError, match=match):
        DataFolder(folder, held_out=12).overlap()


def test_a_damaged_row_unequal_sides_and_a_folder_without_pairs_are_refused(tmp_path: Path) -> None:
    folder = write_data(tmp_path)
    english = folder / "tatoeba" / "tatoeba.rus-eng.eng"
    english.write_text(english.read_text() + "one more\n")
    with pytest.raises(InputError, match=rf"found {PAIRS + 1} lines in .*eng and {PAIRS} in"):
        DataFolder(folder, held_out=12).bitext("en-ru")
    pud = folder / "ud" / "UD_German-PUD" / "de_pud-ud-test.conllu"
    pud.write_text(pud.read_text("utf-8").replace("\t_\t_\n", "\t_\n", 1), "utf-8")
    with pytest.raises(InputError, match=r"de_pud-ud-test.conllu: line 2: expected 10 columns, found 9"):
        DataFolder(folder, held_out=12).tag_test("de")
    for file in (folder / "tatoeba").iterdir():
        file.unlink()
    with pytest.raises(InputError, match="pairs of no known language"):
        DataFolder(folder)


def test_sentences_of_pud_must_be_there_in_every_language_and_enough(tmp_path: Path) -> None:
    folder = write_data(tmp_path)
    pud = folder / "ud" / "UD_German-PUD" / "de_pud-ud-test.conllu"
    pud.write_text(pud.read_text("utf-8").replace("# sent_id = n", "# sent_id = m"), "utf-8")
    with pytest.raises(InputError, match="PUD of de lacks sentence n"):
        DataFolder(folder, held_out=12).held_out("en-de")
    with pytest.raises(InputError, match=f"at most {PUD - 4} of {PUD} PUD sentences, found {PUD}"):
        DataFolder(folder, held_out=PUD).tag_test("en")
    with pytest.raises(InputError, match="pair: expected one of en-de, en-ru, found 'en-fr'"):
        DataFolder(folder).bitext("en-fr")


def test_punctuation_is_detached_and_marks_of_a_script_are_not() -> None:
    assert detached(["(3.5", "किताब।", "don't", "—"]) == ("(", "3.5", "किताब", "।", "don't", "—")


def test_the_data_folder_is_asked_or_the_environments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MECHEDIT_DATA", raising=False)
    with pytest.raises(InputError, match="name it with --data"):
        data_path("")
    monkeypatch.setenv("MECHEDIT_DATA", str(tmp_path))
    assert data_path(None) == tmp_path
    (tmp_path / "data").mkdir()
    assert data_path(None) == tmp_path / "data"
    assert data_path("x") == Path("x")


# -- pre-training text -------------------------------------------------------------------------------------------


def test_small_languages_are_repeated_to_their_share() -> None:
    texts = {"a": [f"a{i}" for i in range(1000)], "b": [f"b{i}" for i in range(100)], "c": ["c"] * 10}
    rows = balanced(texts, alpha=0.3)
    counts = {name: sum(row.startswith(name) for row in rows) for name in texts}
    weights = {name: len(some) ** 0.3 for name, some in texts.items()}
    for name in texts:
        assert counts[name] / len(rows) == pytest.approx(weights[name] / sum(weights.values()), rel=0.05)


# -- the laboratory ----------------------------------------------------------------------------------------------


def test_the_laboratory_gives_english_and_target_their_own_text(data: DataFolder) -> None:
    lab = FileLab(tiny_encoder(), data, SIZES)
    assert lab._labelled("train", "source", "pos").words == data.tagged.words[:40]
    assert lab._labelled("test", "de", "pos").words == data.tag_test("de").words
    assert lab._labelled("train", "ru", "topic").words == data.topics("ru").words
    assert lab._task("pos").labels == ("ADJ", "DET", "NOUN", "PUNCT", "VERB")
    assert lab.data["files"] == data.hashes
    right, wrong = (lab._bitext("en-de", shuffled=shuffled) for shuffled in (False, True))
    assert right.links is not None
    assert any(right.links)
    assert all(a != b for a, b in zip(right.target, wrong.target, strict=True))


def test_a_target_language_may_lack_a_class_or_have_one_more(tmp_path: Path) -> None:
    folder = write_data(tmp_path)
    pud = folder / "ud" / "UD_German-PUD" / "de_pud-ud-test.conllu"
    pud.write_text(pud.read_text("utf-8").replace("\tVERB\t", "\tAUX\t"), "utf-8")
    lab = FileLab(tiny_encoder(), DataFolder(folder, held_out=12), SIZES)
    assert lab._task("pos").labels == ("ADJ", "AUX", "DET", "NOUN", "PUNCT", "VERB")
    loss = lab.task_loss(lab.encoder, "pos", pair="en-de")
    assert loss.of(loss.batches[0]).isfinite()
    assert sum(map(len, loss.batches)) == 16  # two batches of eight


def test_a_task_of_one_class_is_refused(tmp_path: Path) -> None:
    folder = write_data(tmp_path)
    train = folder / "sib200" / "eng_Latn" / "train.tsv"
    train.write_text(
        train.read_text("utf-8").replace("travel", "sports").replace("politics", "sports"), "utf-8"
    )
    with pytest.raises(InputError, match="at least two classes to train on, found sports"):
        FileLab(tiny_encoder(), DataFolder(folder, held_out=12), SIZES).finetuned(
            tiny_encoder(), "topic", seed=0
        )


def test_learning_rates_that_are_not_named_suit_the_encoder(data: DataFolder) -> None:
    small = FileLab(tiny_encoder(), data, SIZES)
    assert small.sizes.align_lr == small.sizes.finetune_lr == 1e-3
    named = FileLab(tiny_encoder(), data, replace(SIZES, align_lr=3e-5))
    assert (named.sizes.align_lr, named.sizes.finetune_lr) == (3e-5, 1e-3)
    config = XLMRobertaConfig(
        vocab_size=300, hidden_size=288, num_hidden_layers=6, num_attention_heads=4, intermediate_size=1152
    )
    encoder = tiny_encoder()
    large = Encoder(
        XLMRobertaModel(config, add_pooling_layer=False), encoder.tokenizer, name="l", source="fresh"
    )
    assert (SIZES.suited(large).align_lr, SIZES.suited(large).finetune_lr) == (2e-5, 5e-5)


def test_a_loss_that_is_not_finite_stops_the_study_and_keeps_what_was_done(
    data: DataFolder, tmp_path: Path
) -> None:
    lab = FileLab(tiny_encoder(), data, replace(SIZES, align_lr=1e30, align_steps=4))
    plan = StudyConfig(("en-de",), ("mlm",), ("pos",), seeds=1, shuffled=False)
    with pytest.raises(TrainingError, match="expected a finite number"):
        transfer_study(lab, plan, tmp_path / "run", progress=False)
    assert "none-0.json" in {file.name for file in (tmp_path / "run" / "cases").iterdir()}
    assert not (tmp_path / "run" / "results").exists()


# -- the study, by the command line ------------------------------------------------------------------------------


def test_a_recipe_on_files_is_pre_trained_studied_and_reported(run: Path) -> None:
    cells = Study.load(run / "results" / "study").cells
    assert cells[["pair", "objective", "task"]].values.tolist() == [
        ["en-de", objective, task] for objective in ("token", "shuffled") for task in ("pos", "topic")
    ]
    assert cells.query("objective == 'token'")["gradient_cosine"].notna().all()
    assert set(cells["n"]) == {PUD - 12, TEXTS}
    table = pd.read_parquet(run / "overlap.parquet")
    assert "pre-training" in set(table["a"])
    page = (run / "report.html").read_text("utf-8")
    assert "It is not XLM-R" in page
    assert "The encoder is not XLM-R: 0.0 million parameters in 2 layers" in page
    assert "0 of its sentences stand in another set too" in page
    assert "languages are invented" not in page
    files = json.loads((run / "provenance.json").read_text())["data"]["files"]
    assert "tatoeba/tatoeba.deu-eng.deu" in files


def test_it_goes_on_where_it_stopped_and_refuses_other_text(
    run: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case = run / "cases" / "align-en-de-token-0.json"
    before = case.read_bytes()
    case.unlink()
    argv: list[Any] = [
        "study",
        "--recipe",
        run.parent / "recipe.toml",
        "--out",
        run,
        "--quiet",
        "--device",
        "cpu",
    ]
    assert main([*map(str, argv), "--data", str(folder)]) == 0
    assert case.read_bytes() == before
    other = write_data(tmp_path, seed=1)
    assert main([*map(str, argv), "--data", str(other)]) == 2
    assert "-encoder holds another training: text" in capsys.readouterr().err


def test_pretrain_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["pretrain", "--help"])
    assert "example: xlprobe pretrain --data" in capsys.readouterr().out


def test_pretrain_makes_an_encoder_that_a_study_can_name(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "recipe.toml").write_text(RECIPE)
    argv = ["pretrain", "--data", str(folder), "--recipe", str(tmp_path / "recipe.toml"), "--steps", "2"]
    assert main([*argv, "--out", str(tmp_path / "e"), "--quiet", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["sentences"] == {"en": EWT + PAIRS, "de": PAIRS, "ru": PAIRS}
    assert (Path(found["model"]) / "model.safetensors").is_file()
    assert main([*argv, "--out", str(tmp_path / "e"), "--quiet"]) == 0  # the same again gives the same model
    assert capsys.readouterr().out.strip() == found["model"]
    argv[-1] = "3"
    assert main([*argv, "--out", str(tmp_path / "e"), "--quiet"]) == 2
    assert "holds another training: training.steps is 2 there and 3 here" in capsys.readouterr().err


def test_langworld_takes_no_data_and_an_unknown_size_is_named(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["study", "--data", str(folder), "--out", str(tmp_path / "x"), "--quiet"]) == 2
    assert "the embedded languages take none" in capsys.readouterr().err
    write(tmp_path / "recipe.toml", ['experiment = "real_text"', "[sizes]", "heldout = 3"])
    assert main(["study", "--recipe", str(tmp_path / "recipe.toml"), "--quiet"]) == 2
    assert "did you mean 'sizes.held_out'" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_the_recipes_are_studies_of_the_built_in_sizes(root: Path) -> None:
    recipes = root / "experiments" / "recipes"
    real = config.load(recipes / "real-text.toml", RealTextRecipe, experiment="real_text")
    assert real.pretrain == Pretraining()
    assert real.sizes == FileSizes().suited(tiny_encoder())
    plain = config.load(recipes / "transfer.toml", StudyRecipe, experiment="study")
    assert plain.plan == StudyConfig(seeds=5)
    assert replace(real.plan, seeds=5) == plain.plan


def test_the_settings_for_xlm_r_in_the_recipe_are_a_recipe(root: Path, tmp_path: Path) -> None:
    text = (root / "experiments" / "recipes" / "real-text.toml").read_text("utf-8")
    lines = [line.removeprefix("#: ") for line in text.splitlines() if line.startswith("#:")]
    write(tmp_path / "base.toml", lines)
    base = config.load(tmp_path / "base.toml", RealTextRecipe, experiment="real_text")
    assert (base.encoder, base.seeds) == ("xlm-roberta-base", 5)
    assert base.sizes.align_lr == base.sizes.finetune_lr == 2e-5
    assert base.sizes.finetune_steps == 10 * base.sizes.train // base.sizes.batch


@pytest.mark.shared
def test_real_text_is_as_large_as_its_sources_say_and_nothing_asked_is_learned(shared_dir: Path) -> None:
    data = DataFolder(shared_dir / "data", held_out=300)
    assert data.pairs == ("en-de", "en-tr", "en-hi", "en-ru")
    assert [len(data.tag_test(code)) for code in ("en", "de", "tr", "hi", "ru")] == [700] * 5
    assert len(data.held_out("en-hi")) == 300
    learned = {text_hash(words) for pair in data.pairs for words in data.bitext(pair).target}
    learned |= {text_hash(words) for words in (*data.tagged.words, *data.topics("en").words)}
    asked = [
        w for code in ("en", "hi") for c in (data.tag_test(code), data.topic_test(code)) for w in c.words
    ]
    assert not learned & {text_hash(words) for words in (*asked, *data.held_out("en-hi").target)}
    lab = FileLab(tiny_encoder(), data, FileSizes(train=64, test=16, head_steps=1))
    assert len(lab._task("pos").labels) == 17  # the universal tags
