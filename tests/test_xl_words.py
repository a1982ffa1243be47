"""Words and labels: each label stays with its word, and what is lost is placed, counted in the log, or refused."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor

from reports.errors import InputError
from tests.test_xl_alignment import PAIRS, SHORT, naive_contrastive
from tests.test_xl_finetune import BRIEF, POS, TAGS, WORDS
from tests.xl_tiny import ARCHS, Arch, tiny_encoder
from xlprobe.cli import main
from xlprobe.data.corpora import Bitext, Labelled, load_bitext, load_conllu, load_sib200, text_lines
from xlprobe.data.tasks import Task
from xlprobe.encoders.coverage import coverage
from xlprobe.probes.distances import Distances, distances
from xlprobe.training.alignment import AlignmentLoss, align
from xlprobe.training.finetune import Joint, TaskModel, finetune
from xlprobe.training.links import argmax_links, require_words
from xlprobe.training.objectives import contrastive, objective_loss
from xlprobe.transfer.laboratory import JointPlan, Sizes
from xlprobe.transfer.study import StudyConfig, transfer_study
from xlprobe.transfer.world_lab import WorldLab

NOTHING = ("\u200b", "\u0007", "\u00ad\u200b")  # zero-width space, a control character, soft hyphen


def silent_words() -> dict[Arch, str]:
    """For each architecture, a word of which its tokenizer leaves nothing."""
    found: dict[Arch, str] = {}
    for arch in ARCHS:
        for word in (*NOTHING, ""):
            ids = tiny_encoder(arch).encode([["Anna", word, "Rome"]]).word_ids[0].tolist()
            if 1 not in ids:
                found[arch] = word
                break
    return found


SILENT = silent_words()


# -- labels -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", SILENT)
def test_a_word_without_a_token_costs_its_own_label_alone(arch: Arch) -> None:
    """Oracle: the loss and the answers of the same sentence without that word."""
    encoder, silent = tiny_encoder(arch), SILENT[arch]
    words = tuple((w[0], silent, *w[1:]) for w in WORDS)
    labels = tuple((tags[0], "SYM", *tags[1:]) for tags in TAGS.labels)
    task = Task("tagging", Labelled(words, labels, TAGS.ids), {}, labels=(*POS.labels, "SYM"))
    plain = Task("tagging", TAGS, {}, labels=(*POS.labels, "SYM"))
    shifted, model = TaskModel(encoder, task), TaskModel(encoder, plain)
    rows = torch.arange(4)
    assert float(shifted(rows).detach()) == pytest.approx(float(model(rows).detach()), rel=1e-6)
    for said, without in zip(shifted.predict(words), model.predict(WORDS), strict=True):
        assert said == [without[0], "", *without[1:]]
    score, other = shifted.score(task.train), model.score(TAGS)
    assert score["lost"] == len(WORDS)
    assert score["accuracy"] * score["n"] == pytest.approx(other["accuracy"] * other["n"])


@pytest.mark.parametrize("arch", SILENT)
def test_links_and_distances_stay_with_their_words(arch: Arch) -> None:
    encoder, silent = tiny_encoder(arch), SILENT[arch]
    with_it = Bitext(tuple((silent, *w) for w in PAIRS.source[:6]), PAIRS.target[:6])
    links = argmax_links(encoder, with_it).links or ()
    expected = argmax_links(encoder, Bitext(PAIRS.source[:6], PAIRS.target[:6])).links or ()
    assert [[(i - 1, j) for i, j in pair] for pair in links] == [list(pair) for pair in expected]


def test_what_is_cut_off_is_counted_and_said(caplog: pytest.LogCaptureFixture) -> None:
    encoder = tiny_encoder()
    long = WORDS[0] * 30
    corpus = Labelled((long, *WORDS[1:]), (TAGS.labels[0] * 30, *TAGS.labels[1:]), TAGS.ids)
    seen = coverage(encoder, corpus.words)
    kept = int(encoder.encode([long]).word_ids.max()) + 1
    assert seen.cut == (0,)
    assert (seen.words, seen.words_cut, seen.words_empty) == (sum(map(len, corpus.words)), 90 - kept, 0)
    assert (
        encoder.lost([long])[0]
        == len(encoder.tokenizer([list(long)], is_split_into_words=True).input_ids[0]) - 64
    )
    with caplog.at_level(logging.WARNING):
        model = TaskModel(encoder, Task("tagging", corpus, {}))
    assert (
        f"train: 1 of {len(corpus)} sentences are cut off at 64 tokens, {90 - kept} of {seen.words} words"
        in caplog.text
    )
    caplog.clear()
    assert model.score(corpus)["lost"] == 90 - kept
    assert "asked: 1 of" in caplog.text
    caplog.clear()
    align(
        encoder,
        Bitext((long, *PAIRS.source), (PAIRS.target[0], *PAIRS.target)),
        training=SHORT,
        progress=False,
    )
    assert "bitext: 1 of 50 sentences are cut off" in caplog.text
    caplog.clear()
    TaskModel(encoder, POS)
    assert not caplog.text


def test_distances_count_the_pairs_that_are_cut(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    long = WORDS[0] * 30
    texts = Bitext((long, *PAIRS.source[:7]), (*PAIRS.target[:7], long))
    found = distances(tiny_encoder(), texts, progress=False)
    assert (found.n_cut, found.n_left_out) == (2, 0)
    assert "parallel: 2 of 16 sentences are cut off" in caplog.text
    sample = distances(tiny_encoder(), Bitext(PAIRS.source, PAIRS.target), max_pairs=10, progress=False)
    assert (sample.n_cut, sample.n_left_out) == (0, 14)
    record = json.loads((sample.save(tmp_path / "d") / "result.json").read_text())
    del record["values"]["n_left_out"]  # as an earlier version saved it: n_cut was the sample's
    (tmp_path / "d" / "result.json").write_text(
        json.dumps(record | {"values": record["values"] | {"n_cut": 14}})
    )
    old = Distances.load(tmp_path / "d")
    assert (old.n_cut, old.n_left_out) == (None, 14)


def test_sentences_without_a_token_are_left_out_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    silent = SILENT["xlm-roberta"]
    texts = Bitext(((silent,), *PAIRS.source[:8]), (PAIRS.target[0], *PAIRS.target[:8]))
    assert distances(tiny_encoder(), texts, progress=False).n_left_out == 1
    assert len(AlignmentLoss(tiny_encoder(), texts, "sentence").pairs) == 8
    assert "leaves nothing of 1 of" in caplog.text
    with pytest.raises(InputError, match="leaves nothing of one side of every pair"):
        AlignmentLoss(tiny_encoder(), Bitext(((silent,),), (("a",),)), "sentence")


def test_an_empty_label_is_refused() -> None:
    with pytest.raises(InputError, match=r"sentence 1 \(b\) has an empty label"):
        Labelled((("x",), ("y",)), (("A",), ("",)), ("a", "b"))


# -- files ------------------------------------------------------------------------------------------------------------


def conllu(path: Path, *sentences: list[tuple[str, str]]) -> Path:
    lines = []
    for sentence in sentences:
        lines += [
            f"{i}\t{form}\t_\t{tag}\t_\t_\t0\troot\t_\t_" for i, (form, tag) in enumerate(sentence, 1)
        ] + [""]
    path.write_text("\n".join(lines), "utf-8")
    return path


FULL = [("Anna", "PROPN"), ("works", "VERB")]


def test_sentences_without_words_or_tags_are_no_material(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    blank, untagged = [("_", "NOUN"), ("_", "VERB")], [("Rome", "_"), ("is", "VERB")]
    found = load_conllu(conllu(tmp_path / "a", FULL, blank, untagged, [("_", "PUNCT")], FULL))
    assert found.words == (("Anna", "works"),) * 2
    assert found.labels == (("PROPN", "VERB"),) * 2
    assert "2 of 5 sentences are left out, without words (FORM is _)" in caplog.text
    assert "1 of 5 sentences are left out, without a tag of every word (UPOS is _)" in caplog.text
    with pytest.raises(InputError, match=r"found 2 sentences without words \(FORM is _: the treebank comes"):
        load_conllu(conllu(tmp_path / "b", blank, blank))
    with pytest.raises(InputError, match=r"found 1 sentences without tags \(UPOS is _\)"):
        load_conllu(conllu(tmp_path / "c", untagged))
    caplog.clear()
    kept = load_conllu(conllu(tmp_path / "d", FULL, [("under", "NOUN"), ("_", "PUNCT")], [("_", "SYM")]))
    assert len(kept) == 3  # an underscore is a word where the file has its text
    assert not caplog.text


def test_a_lone_carriage_return_ends_no_line(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"One\rtwo\nThree\nFour\n")
    (tmp_path / "b").write_bytes(b"Eins\r\nDrei\r\nVi\rer")  # of Windows, one of them lone
    assert text_lines(tmp_path / "a") == ["One\rtwo", "Three", "Four"]
    assert text_lines(tmp_path / "b") == ["Eins", "Drei", "Vi\rer"]
    assert load_bitext(tmp_path / "a", tmp_path / "b").source == (("One", "two"), ("Three",), ("Four",))
    (tmp_path / "s").write_bytes(b"index_id\tcategory\ttext\r\n0\ttravel\tA b\rc d\r\n")
    assert load_sib200(tmp_path / "s").words == (("A", "b", "c", "d"),)
    (tmp_path / "l").write_bytes(b"0-0\r1-1\n\n0-0\n")
    assert load_bitext(tmp_path / "a", tmp_path / "a", links=tmp_path / "l").links == (
        ((0, 0), (1, 1)),
        (),
        ((0, 0),),
    )


@pytest.mark.parametrize("row", ["7\t\tA text", "7\tsports\t ", "7\tsports\t"])
def test_a_topic_or_a_text_that_is_missing_names_its_line(row: str, tmp_path: Path) -> None:
    (tmp_path / "x.tsv").write_text(f"index_id\tcategory\ttext\n0\ttravel\tA b\n{row}\n")
    with pytest.raises(InputError, match="line 3: expected a category and a text"):
        load_sib200(tmp_path / "x.tsv")


# -- words of languages without spaces -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sentence",
    ["私は学生です。", "我喜欢你", "ฉันชอบกินข้าวผัดมาก", "ខ្ញុំចូលចិត្តញ៉ាំបាយ", "ကျွန်တော်ထမင်းစားချင်တယ်", "ຂ້ອຍມັກກິນເຂົ້າ"],
)
@pytest.mark.parametrize("objective", ["token", "l2"])
def test_unsegmented_text_has_no_words_to_align(sentence: str, objective: str) -> None:
    pairs = Bitext((("I", "am", "here"),) * 3, ((sentence,), (sentence, "!"), ("「", sentence)))
    with pytest.raises(
        InputError, match=r"the target side is written without spaces .*align by sentence, mlm or tlm"
    ):
        AlignmentLoss(tiny_encoder(), pairs, objective)
    AlignmentLoss(tiny_encoder(), pairs, "sentence")


def test_segmented_text_and_borrowed_words_are_words() -> None:
    segmented = ("私", "は", "コミュニケーション", "を", "学ぶ", "学生", "です", "。")
    thai = ("ฉัน", "ชอบ", "กิน", "ข้าวผัด", "มาก")
    for side in (segmented, thai, ("나는", "학생입니다"), ("We", "visited", "東京大学", "today")):
        require_words(Bitext((("a", "b"),), (side,)))
    mixed = ((("Hello", "you"),) * 5) + (("東京大学",),)
    require_words(Bitext((("a", "b"),) * 6, mixed))


@pytest.mark.shared
def test_real_japanese_pairs_are_refused_and_a_japanese_treebank_is_not(shared_dir: Path) -> None:
    tatoeba, ud = shared_dir / "data" / "tatoeba", shared_dir / "data" / "ud"
    for code in ("jpn", "kor", "kaz", "deu", "hin", "rus", "tur"):
        pairs = load_bitext(tatoeba / f"tatoeba.{code}-eng.eng", tatoeba / f"tatoeba.{code}-eng.{code}")
        if code == "jpn":
            with pytest.raises(InputError, match="the target side is written without spaces"):
                require_words(pairs)
        else:
            require_words(pairs)
    words = load_conllu(ud / "UD_Japanese-GSD" / "ja_gsd-ud-dev.conllu").words
    require_words(Bitext(words, words))


# -- duplicates -------------------------------------------------------------------------------------------------------


def naive_without(x: Tensor, y: Tensor, keys: list[tuple[object, object]]) -> float:
    """Row by row; a row is no negative where its pair shares a side with the row's own."""
    z, n, total = [v / v.norm() for v in (*x, *y)], len(x), 0.0
    for i in range(2 * n):
        partner = (i + n) % (2 * n)
        scores = {}
        for j in range(2 * n):
            alike = set(keys[i % n]) & set(keys[j % n])
            if j == partner or (j != i and not alike):
                scores[j] = float(z[i] @ z[j]) / 0.1
        total -= scores[partner] - float(torch.tensor(list(scores.values())).logsumexp(0))
    return total / (2 * n)


@torch.no_grad()
@pytest.mark.parametrize("repeat", ["both", "source", "target", "across"])
def test_pairs_that_share_a_side_are_no_negatives_of_each_other(repeat: str) -> None:
    source, target = list(PAIRS.source[:5]), list(PAIRS.target[:5])
    if repeat in ("both", "source"):
        source[3] = source[0]
    if repeat in ("both", "target"):
        target[3] = target[0]
    if repeat == "across":
        target[3] = source[0]
    keys: list[tuple[object, object]] = list(zip(source, target, strict=True))
    encoder = tiny_encoder()
    vectors = []
    for side in (source, target):
        batch = encoder.encode(side)
        states = encoder.states(batch)[2]
        vectors.append(torch.stack([s[n >= 0].mean(0) for s, n in zip(states, batch.word_ids, strict=True)]))
    loss = float(
        objective_loss(encoder, "sentence", [(a, b, ()) for a, b in zip(source, target, strict=True)])
    )
    assert loss == pytest.approx(naive_without(vectors[0], vectors[1], keys), abs=1e-4)
    assert loss != pytest.approx(naive_contrastive(vectors[0], vectors[1], 0.1), abs=1e-3)
    assert Bitext(tuple(source), tuple(target)).n_duplicates == 1


@torch.no_grad()
def test_words_of_a_repeated_sentence_are_no_negatives_and_sound_data_stay() -> None:
    encoder = tiny_encoder()
    links = ((0, 2), (1, 0), (2, 1))
    pairs = [(PAIRS.source[i], PAIRS.target[i], links) for i in (0, 5, 0)]
    once = objective_loss(encoder, "token", pairs[:2])
    thrice = objective_loss(encoder, "token", pairs)
    # with its copies masked, a row sees the rows that it saw before; those of the pair in between see it twice
    assert float(thrice) != pytest.approx(float(once), abs=1e-6)
    x, y = torch.randn(5, 7), torch.randn(5, 7)
    assert torch.equal(contrastive(x, y), contrastive(x, y, same=torch.eye(5, dtype=torch.bool)))
    alone = objective_loss(encoder, "sentence", [(PAIRS.source[0], PAIRS.target[0], ())] * 3)
    assert float(alone) == pytest.approx(0.0, abs=1e-6)  # copies of one pair have no negatives at all


def test_duplicates_are_counted_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    AlignmentLoss(tiny_encoder(), Bitext(PAIRS.source * 2, PAIRS.target * 2), "sentence")
    assert "24 of 48 pairs share a side with an earlier pair" in caplog.text
    caplog.clear()
    AlignmentLoss(tiny_encoder(), Bitext(PAIRS.source[:3], PAIRS.target[:3]), "sentence")
    assert not caplog.text


# -- options -------------------------------------------------------------------------------------------------------


def test_a_bitext_is_a_sequence_of_pairs() -> None:
    assert PAIRS[0] == (PAIRS.source[0], PAIRS.target[0])
    assert PAIRS[-1] == (PAIRS.source[-1], PAIRS.target[-1])
    assert list(PAIRS) == list(zip(PAIRS.source, PAIRS.target, strict=True))
    assert PAIRS[2:4].links == PAIRS.links[2:4] if PAIRS.links else False
    with pytest.raises(IndexError):
        PAIRS[24]


@pytest.mark.parametrize("kind", [Joint, JointPlan])
@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"weight": -0.5}, "weight: expected a number above 0, found -0.5"),
        ({"weight": float("nan")}, "weight: expected a number above 0"),
        ({"weight": 0.0}, "weight: expected a number above 0"),
        ({"weight": 0.3, "aggregator": "upgrad"}, "weight: upgrad finds the weights itself"),
        ({"aggregator": "mgda"}, "aggregator: expected one of sum, upgrad"),
    ],
)
def test_weights_that_no_step_takes_are_refused(
    kind: Callable[..., object], options: dict[str, object], match: str
) -> None:
    arguments = (PAIRS, "sentence") if kind is Joint else ("sentence", "source-half")
    with pytest.raises(InputError, match=match):
        kind(*arguments, **options)


def test_another_schedule_is_refused_and_the_default_weight_stays() -> None:
    with pytest.raises(InputError, match="schedule: expected during or alternate, found 'both'"):
        Joint(PAIRS, "sentence", schedule="both")  # type: ignore[arg-type]
    plans = (Joint(PAIRS, "sentence"), Joint(PAIRS, "sentence", weight=0.1))
    hashes = {
        finetune(tiny_encoder(), POS, training=BRIEF, alignment=p, progress=False).encoder.hash for p in plans
    }
    assert len(hashes) == 1


@pytest.mark.parametrize("option", [{"check_every": 0}, {"patience": 0}, {"held_out": PAIRS[:0]}])
def test_an_early_stop_that_never_looks_is_refused(option: dict[str, object]) -> None:
    with pytest.raises(InputError, match=f"{next(iter(option))}: expected at least"):
        align(tiny_encoder(), PAIRS, training=replace(SHORT), progress=False, **option)  # type: ignore[arg-type]


def test_options_of_an_early_stop_are_not_ignored(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(InputError, match="held_out: check_every and patience are the early stop's"):
        align(tiny_encoder(), PAIRS, training=SHORT, patience=2, progress=False)
    align(tiny_encoder(), PAIRS, training=SHORT, held_out=PAIRS, progress=False)
    assert "the early stop never looks, for 50 is more than the 6 steps" in caplog.text


def test_a_study_is_refused_before_its_first_case_where_a_pair_has_no_words(tmp_path: Path) -> None:
    class Unspaced(WorldLab):
        """Its targets are written without spaces."""

        def _parallel(self, which: Literal["bitext", "held_out"], pair: str) -> Bitext:
            pairs = super()._parallel(which, pair)
            return Bitext(pairs.source, (("我喜欢你们的音乐",),) * len(pairs))

    laboratory = Unspaced(tiny_encoder(), Sizes(bitext=8, train=8, test=8, held_out=8))
    with pytest.raises(InputError, match="written without spaces"):
        transfer_study(
            laboratory, StudyConfig(("source-words",), ("mlm", "token")), tmp_path / "run", progress=False
        )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("argv", "match"),
    [
        (["align", "--target", "{}"], "target: --target says nothing without --source"),
        (["align", "--links", "{}"], "links: --links says nothing without --source"),
        (
            ["align", "--source", "{}", "--target", "{}", "--pairs", "5"],
            "pairs: --pairs is of the embedded languages",
        ),
        (
            ["align", "--source", "{}", "--target", "{}", "--language", "half"],
            "language: --language is of",
        ),
        (["finetune", "--test", "de={}"], "test: --test says nothing without --train"),
    ],
)
def test_options_that_would_be_ignored_are_refused(
    argv: list[str], match: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text").write_text("one\n")
    out = ["--out", str(tmp_path / "out"), "--quiet"]
    assert main([*(part.format(tmp_path / "text") for part in argv), *out]) == 2
    assert match in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
