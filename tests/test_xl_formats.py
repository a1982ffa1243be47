"""Labelled text and bitext in the forms people keep them in; retrieval that corrects for hubs; short reprs."""

from __future__ import annotations

import gzip
from pathlib import Path

import datasets
import pytest
import torch

from reports.errors import InputError
from tests.xl_tiny import tiny_encoder
from xlprobe.data.corpora import Bitext, Labelled, load_bitext, load_conllu, load_links
from xlprobe.data.formats import load_iob2, load_tags, load_texts
from xlprobe.data.tasks import Task
from xlprobe.encoders.batches import SEPARATOR
from xlprobe.probes.similarity import measure, retrieval_hits
from xlprobe.training.finetune import finetune
from xlprobe.training.loop import Training

PAIRS = [("a dog", "ein Hund"), ("a cat", "eine Katze"), ("a dog", "ein Hund"), ("we", "wir")]
WORDS = Bitext(tuple(tuple(a.split()) for a, _ in PAIRS), tuple(tuple(b.split()) for _, b in PAIRS))
TMX = """<?xml version="1.0"?><tmx version="1.4"><header srclang="en"/><body>{}</body></tmx>"""
UNIT = '<tu><tuv xml:lang="{}"><seg>{}</seg></tuv><tuv xml:lang="{}"><seg>{}</seg></tuv></tu>'
ROW = "{}\t{}\t{}\tNOUN\tNN\tCase=Nom|Number=Sing\t{}\t{}\t_\tNER=B-X\n"


def put(file: Path, text: str) -> Path:
    if file.suffix == ".gz":
        file.write_bytes(gzip.compress(text.encode()))
    else:
        file.write_text(text, "utf-8")
    return file


# -- bitext ------------------------------------------------------------------------------------------------------


def test_one_bitext_in_every_form(tmp_path: Path) -> None:
    sides = ["\n".join(pair[k] for pair in PAIRS) + "\n" for k in (0, 1)]
    for end in ("", ".gz"):
        a, b = (
            put(tmp_path / f"c.{code}{end}", side) for code, side in zip(("en", "de"), sides, strict=True)
        )
        assert load_bitext(a, b) == WORDS
        assert load_bitext(tmp_path / "c", languages=("en", "de")) == WORDS
        a.unlink()
        b.unlink()
        put(tmp_path / f"m.en-de.en{end}", sides[0])
        put(tmp_path / f"m.en-de.de{end}", sides[1])
        assert load_bitext(tmp_path / "m", languages=("de", "en")) == Bitext(WORDS.target, WORDS.source)
        bars = put(tmp_path / f"bars.txt{end}", "".join(f"{a} ||| {b}\n" for a, b in PAIRS))
        assert load_bitext(bars) == WORDS
        tsv = put(tmp_path / f"x.tsv{end}", "".join(f"{i}\t{b}\t{a}\n" for i, (a, b) in enumerate(PAIRS)))
        assert load_bitext(tsv, columns=(3, 2)) == WORDS
        head = put(tmp_path / f"y.tsv{end}", "de\tid\ten\n" + "".join(f"{b}\t0\t{a}\n" for a, b in PAIRS))
        assert load_bitext(head, columns=("en", "de")) == WORDS
        units = "".join(UNIT.format("en-US", a, "de", b) for a, b in PAIRS)
        tmx = put(tmp_path / f"z.tmx{end}", TMX.format(units))
        assert load_bitext(tmx) == load_bitext(tmx, languages=("en", "de")) == WORDS
        assert load_bitext(tmx, languages=("de-AT", "en")) == Bitext(WORDS.target, WORDS.source)


def test_what_is_no_bitext_is_refused(tmp_path: Path) -> None:
    three = put(tmp_path / "x.tsv", "a\tb\tc\n")
    with pytest.raises(InputError, match="expected 2 columns, found 3; choose two with columns"):
        load_bitext(three)
    with pytest.raises(InputError, match="line 1: expected 4 columns, found 3"):
        load_bitext(three, columns=(1, 4))
    with pytest.raises(InputError, match="has no column 'en', only a, b, c"):
        load_bitext(three, columns=("en", "b"))
    with pytest.raises(InputError, match=r"expected a Moses pair such as .*x\.en and .*x\.de, found none"):
        load_bitext(tmp_path / "x", languages=("en", "de"))
    with pytest.raises(InputError, match="expected a readable TMX file"):
        load_bitext(put(tmp_path / "x.tmx", "<tmx>"))
    third = TMX.format(UNIT.format("en", "a", "de", "b") + UNIT.format("en", "a", "fr", "c"))
    with pytest.raises(InputError, match="of the same two languages, found en, de, fr; name two of them"):
        load_bitext(put(tmp_path / "y.tmx", third))
    (tmp_path / "p.gz").write_bytes(b"no gzip")
    with pytest.raises(InputError, match="expected a readable UTF-8 file"):
        load_bitext(tmp_path / "p.gz")


def test_pairs_that_occur_again_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = put(tmp_path / "x.tsv", "".join(f"{a}\t{b}\n" for a, b in PAIRS))
    assert len(load_bitext(file)) == 4
    assert load_bitext(file, unique=True).source == (("a", "dog"), ("a", "cat"), ("we",))
    assert "1 pairs that occur again are left out" in caplog.text


def test_links_from_0_or_1_sure_and_possible(tmp_path: Path) -> None:
    file = put(tmp_path / "links", "1-1 2?2 1p2\n\n2-1\n")
    assert load_links(file, base=1) == (((0, 0), (1, 1), (0, 1)), (), ((1, 0),))
    assert load_links(file, base=1, possible=False) == (((0, 0),), (), ((1, 0),))
    assert load_links(file)[0][0] == (1, 1)
    with pytest.raises(InputError, match="a word has the number 0; expected numbers from 1"):
        load_links(put(tmp_path / "zero", "0-1\n"), base=1)
    with pytest.raises(InputError, match="expected links as 0-0 1-2, found '1:2'"):
        load_links(put(tmp_path / "bad", "1:2\n"))


# -- labelled text -----------------------------------------------------------------------------------------------


def test_any_column_of_a_treebank(tmp_path: Path) -> None:
    text = (
        ROW.format(1, "dogs", "dog", 2, "nsubj")
        + ROW.format(2, "run", "run", 0, "root").replace("Case=Nom|", "")
        + "\n"
    )
    file = put(tmp_path / "x.conllu", "# sent_id = a\n" + text)
    assert load_tags(file)[0] == load_conllu(file)[0]
    columns = {
        "xpos": ("NN", "NN"),
        "deprel": ("nsubj", "root"),
        "lemma": ("dog", "run"),
        "feats:Case": ("Nom", "_"),
        "misc:NER": ("B-X",) * 2,
    }
    for column, labels in columns.items():
        assert load_tags(file, column).labels == (labels,)
        assert load_tags(file, column).ids == ("a",)
    with pytest.raises(InputError, match="column: expected one of form, lemma"):
        load_tags(file, "tense")
    with pytest.raises(InputError, match="expected labels in the column feats:Mood, found none"):
        load_tags(file, "feats:Mood")


def test_named_entities(tmp_path: Path) -> None:
    file = put(
        tmp_path / "x.iob2",
        "-DOCSTART- O\n\n# id 1\nAnna\tNNP\tB-PER\nKeller\tNNP\tI-PER\n\nRome NNP B-LOC\n",
    )
    assert load_iob2(file).labels == (("B-PER", "I-PER"), ("B-LOC",))
    assert load_iob2(file, word=2).words == (("NNP", "NNP"), ("NNP",))
    with pytest.raises(InputError, match=r"line 1: I-PER continues no PER \(IOB1\?\)"):
        load_iob2(put(tmp_path / "iob1", "Anna I-PER\n"))
    with pytest.raises(InputError, match="line 1: expected O, B-X or I-X, found 'PER'"):
        load_iob2(put(tmp_path / "bare", "Anna PER\n"))


def test_texts_and_pairs_of_texts(tmp_path: Path) -> None:
    file = put(
        tmp_path / "x.tsv",
        "gold\tid\tpremise\thypothesis\nyes\t1\tIt rains .\tIt is wet .\nno\t2\tAnna\tRome\n",
    )
    alone = load_texts(file, text="premise", label="gold")
    assert (alone.words[0], alone.labels) == (("It", "rains", "."), (("yes",), ("no",)))
    both = load_texts(file, text="premise", second="hypothesis", label="gold")
    assert both.words[1] == ("Anna", SEPARATOR, "Rome")
    encoder = tiny_encoder()
    row, sep = encoder.encode(both.words).input_ids[1].tolist(), encoder.tokenizer.sep_token_id
    inner = [encoder.encode([[word]]).input_ids[0, 1:-1].tolist() for word in ("Anna", "Rome")]
    assert row[: 3 + sum(map(len, inner))] == [encoder.tokenizer.cls_token_id, *inner[0], sep, *inner[1], sep]
    model = finetune(
        encoder, Task("classification", both, {}), training=Training(20, 2, 1e-2), progress=False
    )
    assert model.score(both)["accuracy"] == 1.0
    with pytest.raises(InputError, match="no column 'text', only gold, id, premise, hypothesis"):
        load_texts(file)
    with pytest.raises(InputError, match="line 2: expected 2 columns, found 1"):
        load_texts(put(tmp_path / "y.tsv", "text\tlabel\nx\n"))


def test_a_data_set_with_classes(tmp_path: Path) -> None:
    names = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])}
    )
    made = datasets.Dataset.from_dict({"text": ["one dog", "two"], "label": [1, 0]}, features=names)
    (tmp_path / "data").mkdir()
    made.to_parquet(str(tmp_path / "data" / "train.parquet"))
    corpus = load_texts(tmp_path / "data")
    assert corpus.words == (("one", "dog"), ("two",))
    assert corpus.labels == (("good",), ("bad",))


# -- retrieval ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["csls", "margin"])
def test_retrieval_against_hubs_by_a_naive_search(by: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 6, generator=generator, dtype=torch.float64)
    y = x + 1.2 * torch.randn(40, 6, generator=generator, dtype=torch.float64)
    y[0] = x.mean(0) + 0.3 * x[0]  # a hub
    cosine = [[float(torch.nn.functional.cosine_similarity(a, b, dim=0)) for b in y] for a in x]
    near_x = [sum(sorted(row)[-10:]) / 10 for row in cosine]
    near_y = [sum(sorted(row[j] for row in cosine)[-10:]) / 10 for j in range(40)]

    def score(i: int, j: int) -> float:
        if by == "csls":
            return 2 * cosine[i][j] - near_x[i] - near_y[j]
        return cosine[i][j] / ((near_x[i] + near_y[j]) / 2)

    there = [max(range(40), key=lambda j: score(i, j)) == i for i in range(40)]
    back = [max(range(40), key=lambda i: score(i, j)) == j for j in range(40)]
    expected = [(a + b) / 2 for a, b in zip(there, back, strict=True)]
    assert retrieval_hits(x, y, by=by).tolist() == expected
    assert measure(x, y, metrics=[f"{by}_retrieval"])[f"{by}_retrieval"].matched == pytest.approx(
        sum(expected) / 40
    )
    assert expected != retrieval_hits(x, y).tolist()  # the oracle tells them from the cosine


def test_strong_retrieval_is_by_cosine() -> None:
    with pytest.raises(InputError, match="by: expected one of cosine, csls, margin"):
        retrieval_hits(torch.eye(4), torch.eye(4), by="csls", strong=True)


# -- in a notebook -----------------------------------------------------------------------------------------------


def test_reprs_are_one_short_line_and_slices_are_corpora() -> None:
    corpus = Labelled((("a", "b"),) * 5000, (("X", "Y"),) * 5000, tuple(map(str, range(5000))))
    assert repr(corpus) == "Labelled(5,000 sentences, 10,000 words, 2 labels: X, Y)"
    assert repr(WORDS) == "Bitext(4 pairs, 7 and 7 words, no links)"
    assert (
        repr(Task("tagging", corpus, {"de": corpus}))
        == "Task(tagging, 2 labels, 5,000 to learn, asked: de 5,000)"
    )
    assert (len(corpus[:10]), corpus[1:3].ids, corpus[0]) == (10, ("1", "2"), (("a", "b"), ("X", "Y")))
    assert next(iter(corpus)) == (("a", "b"), ("X", "Y"))
