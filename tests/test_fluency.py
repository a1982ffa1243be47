"""GE and RS: entropies by hand, scikit-learn's cosine written out, and the texts that they are made of."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import pytest

from mechedit.data.facts import FactEdit
from mechedit.editors import NoEdit
from mechedit.evaluation.evaluate import evaluate
from mechedit.evaluation.fluency import (
    LENGTH,
    References,
    generated_texts,
    ngram_entropy,
    record_entropy,
    words,
)
from mechedit.factworld import edits
from mechedit.models.hooked import HookedModel
from reports.errors import InputError


def test_words_are_runs_of_letters_and_single_marks() -> None:
    assert words("Anna isn't in São-Paulo (1985)...") == [
        *("Anna", "isn't", "in", "São", "-", "Paulo", "(", "1985", ")", ".", ".", "."),
    ]
    assert words(" \n") == []


def test_entropy_by_hand() -> None:
    # a b c d: three bigrams once each, two trigrams: log2 3 and 1 bit
    assert ngram_entropy("a b c d") == pytest.approx((2 / 3 * math.log2(3) + 4 / 3) / 2)
    # a a a a: one bigram, one trigram
    assert ngram_entropy("a a a a") == 0.0
    # x y x y x: xy twice, yx twice (1 bit); xyx twice, yxy once
    h3 = -(2 / 3 * math.log2(2 / 3) + 1 / 3 * math.log2(1 / 3))
    assert ngram_entropy("x y x y x") == pytest.approx((2 / 3 + 4 / 3 * h3) / 2)
    assert math.isnan(ngram_entropy("two words"))
    assert record_entropy(["a b c d", "a a a a"]) == pytest.approx(ngram_entropy("a b c d") / 2)
    assert math.isnan(record_entropy([]))


def test_a_text_that_repeats_itself_scores_lower() -> None:
    varied = "The quick brown fox jumps over the lazy dog while Anna plays chess in Rome today"
    assert ngram_entropy("Anna plays chess. " * 6) < ngram_entropy(varied)


def cosine(a: Sequence[str], b: Sequence[str], corpus: Sequence[str]) -> float:
    """TF-IDF as scikit-learn defines it: smoothed idf, raw counts, words of two letters on."""

    def terms(text: str) -> Counter[str]:
        return Counter(word.lower() for word in words(text) if len(word) > 1)

    n = len(corpus)
    vocabulary = set().union(*(terms(text) for text in corpus))
    idf = {w: math.log((1 + n) / (1 + sum(w in terms(t) for t in corpus))) + 1 for w in vocabulary}
    x, y = (terms(" ".join(texts)) for texts in (a, b))
    dot = sum(x[w] * y[w] * idf[w] ** 2 for w in vocabulary)
    norms = [math.sqrt(sum((t[w] * idf[w]) ** 2 for w in vocabulary)) for t in (x, y)]
    return dot / (norms[0] * norms[1])


def test_consistency_is_the_cosine_written_out() -> None:
    texts = {"Greek": ["Greek is spoken in Athens", "Athens is old"], "Dutch": ["Dutch is spoken in Ghent"]}
    space, corpus = References(texts), [text for own in texts.values() for text in own]
    said = ["In Athens she speaks Greek", "It is old"]
    assert space.similarity(said, "Greek") == pytest.approx(cosine(said, texts["Greek"], corpus))
    assert space.similarity(said, "Greek") > space.similarity(said, "Dutch")
    assert space.similarity(texts["Dutch"], "Dutch") == pytest.approx(1)
    assert space.similarity(["zzz"], "Greek") == 0.0
    assert math.isnan(space.similarity(said, "Welsh"))
    assert math.isnan(space.similarity([], "Greek"))
    with pytest.raises(InputError, match="references: expected at least one text"):
        References({"Greek": []})


def test_texts_are_as_long_as_asked_whatever_the_model_ends(factworld_gpt2: HookedModel) -> None:
    model, fact = factworld_gpt2, edits(1, seed=6)[0]
    texts = generated_texts(model, fact)
    assert len(texts) == len(fact.generation_prompts)
    for prompt, text in zip(fact.generation_prompts, texts, strict=True):
        assert text.startswith(prompt)
        assert len(model.tokenize(text)) > LENGTH / 2  # special tokens are not shown
    assert generated_texts(model, fact) == texts
    assert generated_texts(model, fact, batch_size=1) == texts
    assert generated_texts(model, fact, seed=1) != texts
    ended = model.generate(fact.generation_prompts, max_new_tokens=LENGTH, top_k=5)
    assert sum(map(len, ended)) < sum(
        len(t) - len(p) for t, p in zip(texts, fact.generation_prompts, strict=True)
    )


def test_a_prompt_that_is_longer_stays(factworld_gpt2: HookedModel) -> None:
    fact = FactEdit("Ann", "{} speaks", "Dutch", "Greek", generation_prompts=("Anna Novak is a native of",))
    assert generated_texts(factworld_gpt2, fact, length=2) == ["Anna Novak is a native of"]


def test_generation_is_a_family_of_the_evaluation(factworld_gpt2: HookedModel) -> None:
    facts = edits(2, seed=6)
    references = {facts[0].target_new: [f"It is {facts[0].target_new}."]}
    families = ("generation", "argmax")
    result = evaluate(
        factworld_gpt2, NoEdit(), facts, families=families, references=references, progress=False
    )
    table = result.summary().set_index("metric")
    assert list(table.index) == ["Acc", "Gen", "Spec", "GE", "RS", "KL", "Top1"]
    by_hand = [record_entropy(generated_texts(factworld_gpt2, fact)) for fact in facts]
    assert table.loc["GE", "value"] == pytest.approx(sum(by_hand) / len(facts))
    assert table.loc["GE", "interval"] == "bootstrap"
    assert table.loc["RS", "n"] == sum(fact.target_new == facts[0].target_new for fact in facts)
    assert len(result.generations) == sum(len(fact.generation_prompts) for fact in facts)
    plain = evaluate(factworld_gpt2, NoEdit(), facts[:1], families=families, progress=False)
    assert "RS" not in set(plain.summary()["metric"])
