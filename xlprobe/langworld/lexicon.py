"""The words: concepts of the source language by topic and part of speech, and their forms in five languages.

A *concept* is a pair (part of speech, source lemma). Source forms are English. A target language makes up its own
form for each concept from its own syllables, unlike any other word of any language. What stays the same in all
languages: names, digits and punctuation, and in `half` every second concept.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache

__all__ = [
    "ADPOSITIONS",
    "AUXILIARIES",
    "GENERIC",
    "LANGUAGES",
    "NAMES",
    "TOPICS",
    "Concept",
    "Language",
    "lexicon",
]

Concept = tuple[str, str]  # (Universal POS tag, source lemma)

# topic: nouns, verbs, adjectives. Some nouns are also verbs, here or elsewhere: the tag depends on the context.
TOPICS: dict[str, tuple[str, str, str]] = {
    "sport": (
        "team player race match coach goal ball score medal runner champion stadium",
        "play race win score train defeat",
        "fast fit athletic strong tired",
    ),
    "food": (
        "cook soup bread kitchen dinner sugar recipe drink butter oven plate apple",
        "cook bake eat taste drink slice",
        "sweet fresh hungry salty delicious",
    ),
    "travel": (
        "train ticket hotel map station guide tourist border bridge travel passport flight",
        "travel visit book cross guide reach",
        "foreign distant crowded famous cheap",
    ),
    "science": (
        "test study theory model planet cell laboratory experiment measure expert atom robot",
        "study test measure prove model observe",
        "exact empirical complex digital rare",
    ),
    "music": (
        "song record band singer dance piano concert sound melody guitar drum choir",
        "sing record dance perform compose sound",
        "loud quiet popular slow classical",
    ),
    "nature": (
        "plant river fish forest bird mountain storm water hunt flower island bear",
        "plant grow hunt fish water protect",
        "wild green deep dry frozen",
    ),
}
# What may stand in a sentence on any topic, by tag.
GENERIC: dict[str, str] = {
    "NOUN": "friend teacher pupil doctor farmer year city house story problem group answer",
    "VERB": "see find like need want help remember watch",
    "ADJ": "good new old small big young different long",
    "ADV": "often never slowly today quickly always sometimes again",
    "DET": "the this every my some all",
    "PRON": "he she they we it",
    "CCONJ": "and but or because",
    "NUM": "two three four five ten hundred",
    "ADP": "in with near without for behind",
    "AUX": "will can must should",
}
ADPOSITIONS, AUXILIARIES = GENERIC["ADP"].split(), GENERIC["AUX"].split()
# Written alike everywhere; a topic has names of its own, the last six belong to none.
NAMES: dict[str, str] = {
    "sport": "Kovac Olim Dacosta",
    "food": "Bruno Tarant Maggi",
    "travel": "Lisbon Oslo Kyoto",
    "science": "Newton Curie Kepler",
    "music": "Vivaldi Coltrane Abba",
    "nature": "Amazon Sahara Danube",
    "": "Maria Tom Anna Boris Lena Paul",
}


@dataclass(frozen=True)
class Language:
    """How a language differs from the source.

    Attributes:
        name: Name of the language.
        description: The difference, in words.
        onsets: Beginnings of its syllables.
        vowels: Middles of its syllables.
        codas: Ends of its syllables.
        head_final: The verb comes last; adjective, number and determiner follow the noun, and so does an adposition.
        suffixing: It has no determiners, and suffixes instead of adpositions and auxiliaries.
        shared: Share of the concepts that keep the source's form.
    """

    name: str
    description: str
    onsets: str = ""
    vowels: str = ""
    codas: str = ""
    head_final: bool = False
    suffixing: bool = False
    shared: float = 0.0


LANGUAGES = {
    language.name: language
    for language in (
        Language("source", "the source: English words, subject - verb - object", shared=1.0),
        Language("words", "own vocabulary only", "b d g z v l r br dr gl", "a e u ei", "n s r t"),
        Language(
            "order",
            "own vocabulary, verb last, modifiers and adpositions behind the noun",
            "k t p m n sh ch ky",
            "o i u ai",
            "n k m",
            head_final=True,
        ),
        Language(
            "suffix",
            "own script, suffixes for number, case, tense and person, no determiners",
            "ბ დ გ მ ნ ს კ ლ ვ ხ",
            "ა ე ი ო უ",
            "რ ნ ს შ",
            suffixing=True,
        ),
        Language(
            "half",
            "half of the vocabulary shared",
            "f j w h pl st fr th",
            "e o oa ie",
            "l m x nd",
            shared=0.5,
        ),
    )
}


@cache
def lexicon(seed: int = 0) -> dict[str, dict[Concept, str]]:
    """The stem of each concept in each language; suffixes stand under the tag "SUFFIX".

    >>> words = lexicon(0)
    >>> words["source"]["NOUN", "play"] if ("NOUN", "play") in words["source"] else words["source"]["VERB", "play"]
    'play'
    >>> len({words[name]["NOUN", "river"] for name in ("source", "words", "order", "suffix")})
    4
    """
    taken = {lemma for _, lemma in concepts()} | {name for names in NAMES.values() for name in names.split()}
    forms: dict[str, dict[Concept, str]] = {}
    for language in LANGUAGES.values():
        rng = random.Random(f"{seed}:lexicon:{language.name}")
        words = [concept for concept in concepts() if concept[0] != "SUFFIX"]
        kept = set(rng.sample(words, round(language.shared * len(words))))
        stems: dict[Concept, str] = {}
        for concept in concepts():
            if language.name == "source" and concept[0] == "SUFFIX":
                stems[concept] = {"plural": "s", "singular": "s"}.get(concept[1], "")
            elif concept in kept:
                stems[concept] = concept[1]
            else:
                stems[concept] = _new_word(language, concept[0], rng, taken)
                taken.add(stems[concept])
        forms[language.name] = stems
    return forms


@cache
def concepts() -> tuple[Concept, ...]:
    """Every concept, then the suffixes: plural of nouns, singular of verbs, object, one for each function word."""
    listed = [("NOUN", w) for nouns, _, _ in TOPICS.values() for w in nouns.split()]
    listed += [("VERB", w) for _, verbs, _ in TOPICS.values() for w in verbs.split()]
    listed += [("ADJ", w) for _, _, adjectives in TOPICS.values() for w in adjectives.split()]
    listed += [(tag, w) for tag, words in GENERIC.items() for w in words.split()]
    listed += [("SUFFIX", w) for w in ("plural", "singular", "object", *ADPOSITIONS, *AUXILIARIES)]
    return tuple(dict.fromkeys(listed))


def _new_word(language: Language, tag: str, rng: random.Random, taken: set[str]) -> str:
    """One syllable for function words and suffixes, two or three for content words; never a word that exists."""
    onsets, vowels, codas = language.onsets.split(), language.vowels.split(), language.codas.split()
    short = tag in ("DET", "PRON", "CCONJ", "ADP", "AUX", "NUM", "SUFFIX")
    for attempt in range(1000):
        n = 1 + attempt // 100 if short else rng.choice((2, 2, 3))
        word = "".join(rng.choice(onsets) + rng.choice(vowels) for _ in range(n))
        if tag == "SUFFIX":
            word = rng.choice(vowels) + rng.choice(codas) + (rng.choice(vowels) if attempt > 20 else "")
        elif rng.random() < 0.5:
            word += rng.choice(codas)
        if word not in taken:
            return word
    raise RuntimeError(f"{language.name}: no free word left for {tag}")
