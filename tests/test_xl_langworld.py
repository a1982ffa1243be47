"""The embedded languages: what differs from the source and what does not, splits, gold links, the shipped encoder."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from reports.errors import InputError
from xlprobe.data.corpora import overlap
from xlprobe.encoders.encoder import Encoder, load_encoder
from xlprobe.langworld.check import check
from xlprobe.langworld.grammar import align_words, draw, realise
from xlprobe.langworld.lexicon import LANGUAGES, NAMES, TOPICS, lexicon
from xlprobe.langworld.train import monolingual, train_langworld
from xlprobe.langworld.world import SPLITS, bitext, labelled, meanings, split_of, task
from xlprobe.training.alignment import align, retrieval
from xlprobe.training.finetune import finetune
from xlprobe.training.loop import Training
from xlprobe.transfer.laboratory import Sizes
from xlprobe.transfer.world_lab import WorldLab

MEANINGS = [draw(topic, random.Random(i)) for i, topic in enumerate(list(TOPICS) * 10)]


def test_a_seed_decides_the_world() -> None:
    assert lexicon(0) == lexicon(0) != lexicon(1)
    assert monolingual("words", 3) == monolingual("words", 3)


def test_own_vocabulary_shares_no_word_and_half_shares_half() -> None:
    words = lexicon(0)
    stems = {name: {c: w for c, w in own.items() if c[0] != "SUFFIX"} for name, own in words.items()}
    for name in ("words", "order", "suffix"):
        assert not set(stems[name].values()) & set(stems["source"].values())
    kept = sum(stems["half"][c] == w for c, w in stems["source"].items())
    assert kept == pytest.approx(len(stems["source"]) / 2, abs=1)


def test_words_and_half_differ_in_vocabulary_only() -> None:
    for meaning in MEANINGS:
        source = realise(meaning, "source")
        for name in ("words", "half"):
            other = realise(meaning, name)
            assert [w.tag for w in other] == [w.tag for w in source]
            assert align_words(source, other) == [(i, i) for i in range(len(source))]


def test_order_has_the_same_words_in_another_order() -> None:
    moved = 0
    for meaning in MEANINGS:
        source, other = realise(meaning, "source"), realise(meaning, "order")
        links = align_words(source, other)
        assert sorted(i for i, _ in links) == sorted(j for _, j in links) == list(range(len(source)))
        assert all(source[i].tag == other[j].tag for i, j in links)
        moved += links != sorted((i, i) for i, _ in links)
    assert moved > len(MEANINGS) / 2


def test_suffix_writes_its_own_script_and_no_function_words() -> None:
    for meaning in MEANINGS:
        source, other = realise(meaning, "source"), realise(meaning, "suffix")
        assert not {w.tag for w in other} & {"DET", "ADP", "AUX"}
        linked = {i for i, _ in align_words(source, other)}
        assert {source[i].tag for i in range(len(source)) if i not in linked} <= {"DET"}
        own = [w.form for w in other if w.tag in ("NOUN", "VERB", "ADJ")]
        assert all("Ⴀ" <= letter <= "ჿ" for form in own for letter in form)


def test_splits_share_no_sentence_and_the_report_of_overlap_says_so() -> None:
    texts: dict[str, tuple[tuple[str, ...], ...]] = {
        split: bitext("words", 200, split).source for split in SPLITS
    }
    assert overlap(texts)["shared"].sum() == 0
    assert all(split_of(" ".join(words)) == split for split, some in texts.items() for words in some)
    assert overlap({**texts, "leak": texts["test"][:3]})["shared"].sum() == 3


def test_parallel_means_parallel() -> None:
    assert bitext("words", 50).source == bitext("order", 50).source
    assert labelled("topic", "words", 50, "test").labels == labelled("topic", "suffix", 50, "test").labels
    drawn = meanings("train", 50, named=True)
    assert [m.topic for m in drawn] == [t for (t,) in task("topic", n_train=50).train.labels]


def test_what_does_not_exist_is_refused() -> None:
    with pytest.raises(InputError, match="expected one of source"):
        bitext("klingon", 3)
    with pytest.raises(InputError, match="expected pos or topic"):
        task("parsing")  # type: ignore[arg-type]


def test_training_goes_on_where_it_stopped(tmp_path: Path) -> None:
    """The whole road at a toy size: tokenizer, training, resume, a checkpoint that loads."""
    folder = train_langworld(tmp_path, steps=3, sentences=60, progress=False)
    encoder = load_encoder(folder, device="cpu")
    assert encoder.n_layers == 4
    assert encoder.lm_head is not None
    before = (folder / "model.safetensors").read_bytes()
    assert train_langworld(tmp_path, steps=3, sentences=60, progress=False) == folder  # it is given again
    assert (folder / "model.safetensors").read_bytes() == before
    for other in ({"steps": 4, "sentences": 60}, {"steps": 3, "sentences": 60, "seed": 1}):
        with pytest.raises(InputError, match="holds another training"):
            train_langworld(tmp_path, **other, progress=False)
    (tmp_path / "training.json").unlink()
    with pytest.raises(InputError, match="finished model"):
        train_langworld(tmp_path, steps=3, sentences=60, progress=False)


# ------------------------------------------------------------------------------------------ the shipped encoder


def test_the_shipped_encoder_knows_its_languages(langworld: Encoder) -> None:
    table = check(langworld, n=100).set_index("language")
    assert set(table.index) == set(LANGUAGES)
    assert bool(table["ok"].all())
    assert bool((table["low"] > 2 * table["most_frequent"]).all())


def test_a_random_encoder_fails_the_check(langworld: Encoder) -> None:
    encoder = langworld.copy()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        with torch.no_grad():
            for parameter in encoder.model.parameters():
                parameter.normal_(std=0.02)
    assert not bool(check(encoder, n=50)["ok"].any())


def test_the_default_alignment_raises_held_out_retrieval_by_20_points(langworld: Encoder) -> None:
    """Word links and shuffled pairs: `test_xl_demo`."""
    held_out = bitext("words", 200, "held_out")
    aligned = align(langworld, bitext("words", 800), objective="sentence", progress=False)
    assert retrieval(aligned, held_out) >= retrieval(langworld, held_out) + 0.2


def test_topics_transfer_in_part_in_every_pair(langworld: Encoder) -> None:
    """Without alignment, between 30 and 90 %: what is left to gain, and to lose, can be seen."""
    laboratory = WorldLab(langworld)
    model = laboratory.finetuned(langworld, "topic", seed=0)
    scores = [laboratory.score(model, "topic", pair).accuracy for pair in laboratory.pairs]
    assert all(0.3 < score < 0.9 for score in scores)
    assert laboratory.score(model, "topic", "source-source").accuracy > 0.9


def test_a_random_encoder_transfers_no_topics(langworld: Encoder) -> None:
    """The same measure at chance, where nothing is shared: each language's words and names are new to it."""
    encoder = langworld.copy()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        with torch.no_grad():
            for parameter in encoder.model.parameters():
                parameter.normal_(std=0.02)
    laboratory = WorldLab(encoder, Sizes(train=64, test=200, finetune_steps=2))
    model = laboratory.finetuned(encoder, "topic", seed=0)
    assert all(laboratory.score(model, "topic", pair).accuracy < 0.3 for pair in laboratory.pairs)


def test_sentences_in_names_name_their_topic() -> None:
    for name in ("source", "suffix"):
        texts = labelled("topic", name, 200, "train")
        named = [
            any(word.startswith(known) for word in words for known in NAMES[topic].split())
            for words, (topic,) in texts
        ]
        assert sum(named) / len(named) > 0.75


def test_transfer_has_room_in_both_directions(langworld: Encoder) -> None:
    plan = Training(steps=80, batch=16, lr=4e-3, warmup=10)
    tags = task("pos", n_train=800, n_test=150)
    model = finetune(langworld, tags, training=plan, progress=False)
    scores = {name: model.score(corpus)["accuracy"] for name, corpus in tags.test.items()}
    assert scores["source"] > 0.95
    assert all(0.25 < scores[name] < scores["source"] - 0.03 for name in ("words", "order", "suffix", "half"))
