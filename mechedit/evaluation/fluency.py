"""Text that an edited model writes: does it repeat itself (GE), and does it speak of the new object (RS)?

Source: kmeng01/rome, `eval_utils_counterfact`. Steps, for each generation prompt of a fact:

1. continue it to `LENGTH` tokens with the prompt, sampled from the 5 likeliest, past an end token as in the source, so
   that all texts are as long;
2. GE, n-gram entropy in bits, over words: the mean of (2/3) · H₂ and (4/3) · H₃, H_n = −Σ f log₂ f over the shares f of
   the text's n-grams. A text that repeats itself has few of them. The literature prints it × 100;
3. RS, consistency: cosine of the TF-IDF vectors of all texts of a record, joined, and of the user's reference texts
   about the new object, joined.

Words are runs of letters and digits (an apostrophe inside belongs to them), and every other mark alone. The source
takes NLTK's tokenizer, which cuts English contractions in two: the second decimal may differ. TF-IDF is fitted on all
references that are given (the source: on all of its own), so RS compares runs with the same references only.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mechedit.data.facts import FactEdit
from mechedit.models.generation import generate
from mechedit.models.hooked import HookedModel
from reports.errors import InputError

__all__ = ["LENGTH", "References", "generated_texts", "ngram_entropy", "record_entropy", "words"]

LENGTH = 100
TOP_K = 5
_WORD = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]")


def words(text: str) -> list[str]:
    """The words of a text.

    >>> words("Anna's cat, a tom.")
    ["Anna's", 'cat', ',', 'a', 'tom', '.']
    """
    return _WORD.findall(text)


def ngram_entropy(
    text: str, *, ns: Sequence[int] = (2, 3), weights: Sequence[float] = (2 / 3, 4 / 3)
) -> float:
    """The mean over n of weight_n · H_n, in bits; 0 for a text that repeats one n-gram, NaN for one of fewer words.

    >>> ngram_entropy("a b a b a"), ngram_entropy("a")         # H₂ = 1; H₃: aba, bab, aba
    (0.945..., nan)
    """
    sequence = words(text)
    if len(sequence) < max(ns):
        return math.nan
    return sum(weight * _entropy(sequence, n) for n, weight in zip(ns, weights, strict=True)) / len(ns)


def _entropy(sequence: Sequence[str], n: int) -> float:
    counts = Counter(zip(*(sequence[i:] for i in range(n)), strict=False))
    total = counts.total()
    return -sum(count / total * math.log2(count / total) for count in counts.values())


def record_entropy(texts: Sequence[str]) -> float:
    """GE of one record: the mean over its texts; NaN where there is none."""
    return sum(map(ngram_entropy, texts)) / len(texts) if texts else math.nan


def generated_texts(
    model: HookedModel, fact: FactEdit, *, length: int = LENGTH, seed: int = 0, batch_size: int = 32
) -> list[str]:
    """Prompt and continuation for each generation prompt of `fact`, sampled from the 5 likeliest tokens.

    Prompts of one length are one batch. The same seed gives the same texts.

    Args:
        model: The edited model.
        fact: The fact, with its generation prompts.
        length: Tokens of prompt and continuation together; a longer prompt remains as it is.
        seed: Of the draws.
        batch_size: Prompts of one forward pass.
    """
    prompts = model.encode(fact.generation_prompts)
    texts: dict[int, str] = {}
    for size in sorted({len(ids) for ids in prompts}):
        places = [i for i, ids in enumerate(prompts) if len(ids) == size]
        continuations = [""] * len(places)
        if size < length:
            continuations = generate(
                model,
                [prompts[i] for i in places],
                max_new_tokens=length - size,
                top_k=TOP_K,
                seed=seed + places[0],
                temperature=1.0,
                batch_size=batch_size,
                past_end=True,
            )
        texts |= {i: fact.generation_prompts[i] + text for i, text in zip(places, continuations, strict=True)}
    return [texts[i] for i in range(len(prompts))]


class References:
    """Reference texts by new object, and the TF-IDF space that all of them span.

    >>> space = References({"Greek": ["Greek is spoken in Athens."], "Dutch": ["Dutch is a language of Ghent."]})
    >>> space.similarity(["In Athens she speaks Greek."], "Greek") > space.similarity(["In Athens."], "Dutch")
    True
    """

    def __init__(self, texts: Mapping[str, Sequence[str]]) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer  # here: it takes a second to import

        if not texts or not all(texts.values()):
            raise InputError("references: expected at least one text for each object, found none")
        self._texts = {name: " ".join(about) for name, about in texts.items()}
        self._space: Any = TfidfVectorizer().fit([text for about in texts.values() for text in about])

    def similarity(self, generated: Sequence[str], target: str) -> float:
        """RS: cosine of the generations, joined, with the references about `target`; NaN without any of either."""
        if target not in self._texts or not generated:
            return math.nan
        a, b = self._space.transform([" ".join(generated), self._texts[target]]).toarray()
        norm = float(np.linalg.norm(a) * np.linalg.norm(b))
        return float(a @ b) / norm if norm else 0.0
