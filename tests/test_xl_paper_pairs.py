"""Four pairs without English at the centre: the data folder, its halves, the recipes; an encoder with used tokens."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from experiments import config
from reports.errors import InputError
from tests.xl_files import write
from tests.xl_tiny import TEXTS, tiny_encoder, tiny_folder
from xlprobe.data.corpora import load_sib200, text_hash
from xlprobe.data.languages import LanguageTable
from xlprobe.encoders.encoder import load_encoder
from xlprobe.encoders.used_tokens import keep_used_tokens
from xlprobe.recipes.paper_pairs import CODES, IDS, TREEBANKS, check_pairs, main, write_pairs
from xlprobe.recipes.real_text import RealTextRecipe
from xlprobe.recipes.study import checked
from xlprobe.transfer.file_lab import FileLab, FileSizes
from xlprobe.transfer.study import StudyConfig, case_ids

N = {"train": 21, "dev": 5, "test": 14}


def sources(folder: Path) -> Path:
    """Tiny corpora named as their publishers name them; a text of SIB-200 is its id in each language's way."""
    for file in TREEBANKS:
        name = Path(file).stem
        rows = [
            f"# sent_id = s{i}\n1\t{name}{i}\t_\t{('NOUN', 'VERB')[i % 2]}\t_\t_\t0\troot\t_\t_\n"
            for i in range(20)
        ]
        write(folder / "ud" / file, rows)
    for code, names in CODES.items():
        start = 0
        for part, n in N.items():
            ids = range(start, start + n)
            start += n
            rows = [f"{i}\t{('sport', 'travel')[i % 2]}\t{code}{i} word" for i in reversed(ids)]
            write(folder / "sib200" / names.flores / f"{part}.tsv", ["index_id\tcategory\ttext", *rows])
        if code != "en":
            for side in (code, "en"):
                path = folder / "tatoeba" / f"tatoeba.{names.iso}-eng.{CODES[side].iso}"
                write(path, [f"{side} pair {i}" for i in range(30)])
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pairs")
    write_pairs(sources(root / "data"), root / "out")
    return root / "out"


@pytest.fixture
def recipe(root: Path) -> Path:
    return root / "experiments" / "recipes" / "paper-pairs.toml"


def test_half_of_the_ids_are_aligned_and_the_others_are_the_tasks_in_every_language(made: Path) -> None:
    aligned = (made / "bitext" / IDS).read_text().split()
    for names in CODES.values():
        task = [load_sib200(made / "sib200" / names.flores / f"{p}.tsv").ids for p in ("train", "test")]
        assert len(aligned) == len(task[0]) + len(task[1]) == sum(N.values()) / 2
        assert set(aligned) | set(task[0]) | set(task[1]) == {str(i) for i in range(sum(N.values()))}
        assert len(task[1]) == N["test"]
    japanese, kazakh = ((made / "bitext" / f"ja-kk.{c}").read_text().splitlines() for c in ("ja", "kk"))
    assert [(a, b) for a, b in zip(japanese, kazakh, strict=True)] == [
        (f"ja{i} word", f"kk{i} word") for i in aligned
    ]
    check_pairs(made)


def leak_by_id(folder: Path) -> None:
    """A text that Japanese and Kazakh are aligned on is learned from in German."""
    name = (folder / "bitext" / IDS).read_text().split()[0]
    file = folder / "sib200" / "deu_Latn" / "train.tsv"
    file.write_text(file.read_text() + f"{name}\tsport\tde{name} word\n")


def leak_by_text(folder: Path) -> None:
    """A Kazakh text that is asked is aligned on under another id, in other letters."""
    asked = load_sib200(folder / "sib200" / "kaz_Cyrl" / "test.tsv").words[0]
    file = folder / "bitext" / "ko-kk.kk"
    file.write_text("\n".join([" ".join(asked).upper(), *file.read_text().splitlines()[1:]]) + "\n")


def fewer_ids(folder: Path) -> None:
    file = folder / "bitext" / IDS
    file.write_text("\n".join(file.read_text().splitlines()[1:]) + "\n")


@pytest.mark.parametrize(
    ("harm", "match"),
    [
        (leak_by_id, r"deu_Latn.*1 of SIB-200's ids are aligned on too"),
        (leak_by_text, r"kaz_Cyrl.*1 of its texts stand in the bitext of ko-kk too, the first 'KK"),
        (fewer_ids, r"bitext ja-kk: expected a line for each of 19 ids, found 20"),
    ],
)
def test_the_leak_check_fails_on_a_leak(tmp_path: Path, harm: object, match: str) -> None:
    write_pairs(sources(tmp_path / "data"), tmp_path / "out")
    assert callable(harm)
    harm(tmp_path / "out")
    with pytest.raises(InputError, match=match):
        check_pairs(tmp_path / "out")


def test_what_is_missing_or_not_parallel_and_an_occupied_folder_are_refused(
    tmp_path: Path, made: Path
) -> None:
    with pytest.raises(InputError, match=r"expected .*en_ewt-ud-train.conllu, found no such file"):
        write_pairs(tmp_path, tmp_path / "a")
    data = sources(tmp_path / "data")
    file = data / "sib200" / "kor_Hang" / "dev.tsv"
    file.write_text(file.read_text().replace("\n21\t", "\n99\t"))
    with pytest.raises(InputError, match="the ids of kor_Hang are not those of eng_Latn"):
        write_pairs(data, tmp_path / "b")
    with pytest.raises(InputError, match="expected a new or an empty folder"):
        write_pairs(data, made)


def test_the_recipe_reads_the_folder_and_its_study_has_every_pair_and_task(made: Path, recipe: Path) -> None:
    study = config.load(recipe, RealTextRecipe, experiment="real_text")
    study = replace(study, data=str(made), encoder=str(tiny_folder("xlm-roberta")))
    pairs, tasks, cases = checked(study)
    assert [study.lacks(pair, task) for pair in pairs for task in tasks] == [""] * 8
    assert len(cases) == 3 * (1 + 4 * 3) + 4 * 2 * 2
    data = study.folder()
    assert data.source("ja-kk") == "ja"
    shared = data.overlap()
    judged = shared[shared["b"].isin(["tags: test", "topics: test", "distances"])]
    assert judged["shared"].sum() == 0  # what alignment, tasks and tests share
    topics = shared[
        (shared["b"] == "topics: train") & shared["a"].isin(["alignment ja-kk", "alignment ko-kk"])
    ]
    assert topics["shared"].tolist() == [0, 0]


def test_the_lines_for_xlm_r_are_a_recipe_of_the_same_pairs(recipe: Path, tmp_path: Path) -> None:
    lines = [line[3:] for line in recipe.read_text("utf-8").splitlines() if line.startswith("#: ")]
    write(tmp_path / "base.toml", lines)
    base = config.load(tmp_path / "base.toml", RealTextRecipe, experiment="real_text")
    small = config.load(recipe, RealTextRecipe, experiment="real_text")
    assert base.encoder == "xlm-roberta-base"
    assert (base.pairs, base.tasks, base.train) == (small.pairs, small.tasks, small.train)
    assert base.languages is not None
    assert list(base.languages) == list(small.languages or ())
    for name in {file for files in base.languages.values() for file in files.paths().values()}:
        write(tmp_path / name, ["a b\tc d"])
    assert set(LanguageTable(base.languages, root=tmp_path).pairs) == {"en-de", "en-kk", "ja-kk", "ko-kk"}


def test_a_study_finishes_seeds_and_objectives_one_after_the_other() -> None:
    plan = StudyConfig(objectives=("hictl", "sentence"), seeds=2)
    assert case_ids(plan, ["a-b"], ["pos"]) == [
        "none-0", "align-a-b-hictl-0", "gradients-a-b-hictl-pos",
        "align-a-b-sentence-0", "gradients-a-b-sentence-pos", "align-a-b-shuffled-0",
        "none-1", "align-a-b-hictl-1", "align-a-b-sentence-1", "align-a-b-shuffled-1",
    ]  # fmt: skip


def test_rate_of_the_head_and_precision_reach_the_training(made: Path, recipe: Path) -> None:
    study = replace(config.load(recipe, RealTextRecipe, experiment="real_text"), data=str(made))
    sizes = FileSizes(train=16, finetune_steps=3, batch=4, head_lr=1e-9)
    heads = []
    for chosen in (sizes, replace(sizes, head_lr=1e-1), replace(sizes, head_lr=1e-1, precision="bf16")):
        lab = FileLab(tiny_encoder(), study.folder(), chosen)
        model = lab.finetuned(lab.encoder, "topic", seed=0, source="ja", train="head")
        heads.append(model.head.weight.detach())
    assert (heads[1] - heads[0]).abs().max() > 0.01
    assert 0 < (heads[2] - heads[1]).abs().max() < 0.1
    with pytest.raises(InputError, match=r"sizes\.precision: expected no, bf16 or fp16, found 'half'"):
        replace(sizes, precision="half")  # type: ignore[arg-type]


# -- used tokens ---------------------------------------------------------------------------------------------


def test_used_tokens_give_the_same_states_bit_for_bit(tmp_path: Path) -> None:
    whole = load_encoder(tiny_folder("xlm-roberta"), device="cpu")
    kept = keep_used_tokens(tiny_folder("xlm-roberta"), TEXTS[:2], tmp_path / "small")
    small = load_encoder(tmp_path / "small", device="cpu")
    assert kept == len(small.tokenizer) < len(whole.tokenizer)
    assert torch.equal(small.states(small.encode(TEXTS[:2])), whole.states(whole.encode(TEXTS[:2])))
    assert not torch.equal(small.encode(TEXTS[2:]).input_ids, whole.encode(TEXTS[2:]).input_ids)
    assert small.lm_head is not None


def test_used_tokens_refuse_other_tokenizers_no_text_and_an_occupied_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="only the pieces of a Unigram tokenizer can be left out, found BPE"):
        keep_used_tokens(tiny_folder("roberta"), TEXTS, tmp_path / "a")
    with pytest.raises(InputError, match="expected the text that the encoder will see, found none"):
        keep_used_tokens(tiny_folder("xlm-roberta"), [], tmp_path / "a")
    with pytest.raises(InputError, match=r"expected a folder with tokenizer.json"):
        keep_used_tokens(tmp_path, TEXTS, tmp_path / "a")
    write(tmp_path / "b" / "file", ["x"])
    with pytest.raises(InputError, match="expected a new or an empty folder"):
        keep_used_tokens(tiny_folder("xlm-roberta"), TEXTS, tmp_path / "b")


def test_the_command_writes_folder_and_encoder_for_all_text_of_the_recipe(
    tmp_path: Path, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--recipe", str(recipe), "--encoder", str(tiny_folder("xlm-roberta"))]
    main([str(sources(tmp_path / "data")), str(tmp_path / "out"), *options])
    assert capsys.readouterr().out.splitlines()[0] == str(
        {"alignment": 20, "task: train": 6, "task: test": 14}
    )
    whole, small = (
        load_encoder(f, device="cpu") for f in (tiny_folder("xlm-roberta"), tmp_path / "out" / "encoder")
    )
    study = replace(config.load(recipe, RealTextRecipe, experiment="real_text"), data=str(tmp_path / "out"))
    words = study.folder().asked("topic", "kk")
    assert words is not None
    assert torch.equal(small.states(small.encode(words.words)), whole.states(whole.encode(words.words)))


@pytest.mark.shared
def test_the_folder_of_the_real_corpora(shared_dir: Path, tmp_path: Path, recipe: Path) -> None:
    counts = write_pairs(shared_dir / "data", tmp_path / "out")
    assert counts == {"alignment": 502, "task: train": 298, "task: test": 204}
    study = replace(config.load(recipe, RealTextRecipe, experiment="real_text"), data=str(tmp_path / "out"))
    data = study.folder()
    assert [len(data.held_out(pair)) for pair in study.pairs] == [100] * 4
    assert all(len(data.bitext(pair)) > 350 for pair in study.pairs)
    aligned = {text_hash(words) for pair in ("ja-kk", "ko-kk") for words in data.bitext(pair).target}
    task = [data.learned("topic", "kk"), data.asked("topic", "kk")]
    assert not aligned & {text_hash(words) for corpus in task if corpus for words in corpus.words}
