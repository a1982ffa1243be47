"""Corpora: what is read, what is refused with file and line, and that overlap is found."""

from __future__ import annotations

from pathlib import Path

import pytest

from reports.errors import InputError
from xlprobe.data.corpora import Bitext, load_bitext, load_conllu, load_sib200, overlap, text_hash

ROW = "{}\t{}\t_\t{}\t_\t_\t0\troot\t_\t_"
CONLLU = "\n".join(
    [
        "# sent_id = s1",
        ROW.format("1-2", "am", "_"),
        ROW.format(1, "an", "ADP"),
        ROW.format(2, "dem", "DET"),
        ROW.format("2.1", "ghost", "NOUN"),
        ROW.format(3, "Montag", "NOUN"),
        "",
        ROW.format(1, "Ja", "INTJ"),
    ]
)


def test_conllu_skips_ranges_and_empty_nodes(tmp_path: Path) -> None:
    (tmp_path / "x.conllu").write_text(CONLLU, "utf-8")
    found = load_conllu(tmp_path / "x.conllu")
    assert found.words == (("an", "dem", "Montag"), ("Ja",))
    assert found.labels == (("ADP", "DET", "NOUN"), ("INTJ",))
    assert found.ids == ("s1", "1")


def test_a_conllu_row_with_nine_columns_names_file_and_line(tmp_path: Path) -> None:
    (tmp_path / "x.conllu").write_text(
        CONLLU.replace("\t_\t_\n" + ROW.format("2.1", "ghost", "NOUN"), "\t_\n")
    )
    with pytest.raises(InputError, match=r"x.conllu: line 4: expected 10 columns, found 9"):
        load_conllu(tmp_path / "x.conllu")


def test_sib200_keeps_lone_quotation_marks(tmp_path: Path) -> None:
    (tmp_path / "x.tsv").write_text('index_id\tcategory\ttext\n7\tsports\tHe said "yes\n8\ttravel\tBye\n')
    found = load_sib200(tmp_path / "x.tsv")
    assert found.words[0] == ("He", "said", '"yes')
    assert found.labels == (("sports",), ("travel",))
    (tmp_path / "x.tsv").write_text("index_id\tcategory\ttext\n7\tsports\n")
    with pytest.raises(InputError, match="line 2: expected 3 columns, found 2"):
        load_sib200(tmp_path / "x.tsv")


def test_unequal_sides_are_refused_with_both_lengths(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("one\ntwo\n")
    (tmp_path / "b").write_text("eins\n")
    with pytest.raises(InputError, match=r"found 2 lines in .*a and 1 in .*b"):
        load_bitext(tmp_path / "a", tmp_path / "b")
    with pytest.raises(InputError, match="one length, found 2, 1"):
        Bitext((("a",), ("b",)), (("c",),))


def test_bitext_from_files_and_from_a_tsv_agree(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("one dog\n\ntwo\n")
    (tmp_path / "b").write_text("ein Hund\nleer\nzwei\n")
    (tmp_path / "ab.tsv").write_text("one dog\tein Hund\n\tleer\ntwo\tzwei\n")
    (tmp_path / "links").write_text("0-0 1-1\n\n0-0\n")
    found = load_bitext(tmp_path / "a", tmp_path / "b", links=tmp_path / "links")
    assert found.source == (("one", "dog"), ("two",))
    assert found.links == (((0, 0), (1, 1)), ((0, 0),))
    assert load_bitext(tmp_path / "ab.tsv", links=tmp_path / "links") == found


def test_a_language_without_pairs_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("\n")
    (tmp_path / "b").write_text("\n")
    with pytest.raises(InputError, match="no pairs"):
        load_bitext(tmp_path / "a", tmp_path / "b")
    with pytest.raises(InputError, match="expected a readable UTF-8 file"):
        load_bitext(tmp_path / "nowhere", tmp_path / "b")


def test_bitext_from_a_data_set_equals_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "pairs").mkdir()
    rows = 'en,de,id\none dog,ein Hund,1\n,leer,2\n"two, or",zwei,3\n'
    (tmp_path / "pairs" / "train.csv").write_text(rows, "utf-8")
    (tmp_path / "pairs" / "validation.csv").write_text("en,de,id\nlast,zuletzt,4\n", "utf-8")
    (tmp_path / "links").write_text("0-0 1-1\n\n0-0\n")
    found = load_bitext(tmp_path / "pairs", columns=("en", "de"), links=tmp_path / "links")
    assert found.source == (("one", "dog"), ("two,", "or"))
    assert found.target == (("ein", "Hund"), ("zwei",))
    assert found.links == (((0, 0), (1, 1)), ((0, 0),))
    assert load_bitext(f"{tmp_path / 'pairs'}:validation", columns=("de", "en")).source == (("zuletzt",),)
    with pytest.raises(InputError, match=r"has no column 'tr', only en, de, id"):
        load_bitext(tmp_path / "pairs", columns=("en", "tr"))
    with pytest.raises(InputError, match=r"column 'id' .* expected text, found int"):
        load_bitext(tmp_path / "pairs", columns=("en", "id"))
    for name in (tmp_path / "nowhere", f"{tmp_path / 'pairs'}:test"):
        with pytest.raises(InputError, match="no file and no data set"):
            load_bitext(name, columns=("en", "de"))


@pytest.mark.parametrize(("line", "match"), [("0:1", "found '0:1'"), ("0-9", "points beyond")])
def test_bad_links_are_refused(tmp_path: Path, line: str, match: str) -> None:
    (tmp_path / "a").write_text("x y\n")
    (tmp_path / "links").write_text(line + "\n")
    with pytest.raises(InputError, match=match):
        load_bitext(tmp_path / "a", tmp_path / "a", links=tmp_path / "links")


def test_overlap_counts_copies_and_only_copies() -> None:
    table = overlap({"alignment": ["A b.", "c", "c"], "task": [["a", "B"], ["d"]], "probe": ["e"]})
    assert table["shared"].tolist() == [1, 0, 0]
    assert table["n_a"].tolist() == [2, 2, 2]
    assert text_hash("a") != text_hash("b")


@pytest.mark.shared
def test_real_corpora(shared_dir: Path) -> None:
    data = shared_dir / "data"
    english, german = (
        load_conllu(data / "ud" / f"UD_{name}-PUD" / f"{code}_pud-ud-test.conllu")
        for name, code in (("English", "en"), ("German", "de"))
    )
    assert len(english) == 1000
    assert english.ids == german.ids
    assert len(load_conllu(data / "ud" / "UD_English-EWT" / "en_ewt-ud-train.conllu")) == 12544
    topics = load_sib200(data / "sib200" / "hin_Deva" / "test.tsv")
    assert len(topics) == 204
    assert len({label for (label,) in topics.labels}) == 7
    pairs = load_bitext(data / "tatoeba" / "tatoeba.tur-eng.eng", data / "tatoeba" / "tatoeba.tur-eng.tur")
    assert len(pairs) == 1000
