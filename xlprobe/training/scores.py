"""Scores of a task's answers: accuracy and macro-F1 over questions, F1 over spans.

Answers are (predicted, true) of each word or text, sentence by sentence; an empty prediction is a word that the encoder
never saw, which is wrong. Macro-F1 is scikit-learn's over the labels that occur on either side. Spans are those of IOB2
as conlleval counts them: right where type, first and last word are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sklearn.metrics import f1_score

from reports.errors import InputError

__all__ = ["SCORES", "Answers", "accuracy", "macro_f1", "span_f1", "spans"]

Answers = Sequence[Sequence[tuple[str, str]]]


def accuracy(answers: Answers) -> float:
    """The share of questions whose answer is right.

    >>> accuracy([[("a", "a"), ("a", "b")], [("b", "b")]])
    0.6666666666666666
    """
    pairs = [pair for sentence in answers for pair in sentence]
    return sum(guess == label for guess, label in pairs) / len(pairs)


def macro_f1(answers: Answers) -> float:
    """The mean F1 over the labels that occur, as an answer or as the truth.

    >>> round(macro_f1([[("a", "a"), ("a", "b"), ("b", "b"), ("b", "b")]]), 6)  # F1 2/3 and 4/5
    0.733333
    """
    pairs = [pair for sentence in answers for pair in sentence]
    guesses, labels = zip(*pairs, strict=True)
    known = sorted({label for pair in pairs for label in pair if label})
    return float(f1_score(labels, guesses, labels=known, average="macro", zero_division=0.0))


def span_f1(answers: Answers) -> float:
    """Micro F1 over the spans of IOB2 labels, as conlleval and seqeval count them; 0 where there are none at all.

    Raises:
        InputError: A true label is not O, B-X or I-X.

    >>> round(span_f1([[("B-PER", "B-PER"), ("I-PER", "I-PER"), ("O", "B-LOC")]]), 6)
    0.666667
    """
    right = guessed = true = 0
    for sentence in answers:
        for _, label in sentence:
            if label != "O" and label[:2] not in ("B-", "I-"):
                raise InputError(f"metric: span_f1 needs IOB2 labels (O, B-X, I-X), found {label!r}")
        found, there = (spans([pair[side] for pair in sentence]) for side in (0, 1))
        right, guessed, true = right + len(found & there), guessed + len(found), true + len(there)
    return 2 * right / (guessed + true) if guessed + true else 0.0


def spans(labels: Sequence[str]) -> set[tuple[str, int, int]]:
    """The spans (type, first, one past the last) of a sentence; an empty label is outside.

    >>> sorted(spans(["B-PER", "I-PER", "O", "B-LOC"]))
    [('LOC', 3, 4), ('PER', 0, 2)]
    """
    ends, kind, start = set[tuple[str, int, int]](), "", 0
    for place, label in enumerate([*labels, "O"]):
        prefix, _, name = label.partition("-")
        if kind and not (prefix == "I" and name == kind):
            ends.add((kind, start, place))
            kind = ""
        if not kind and prefix in ("B", "I"):
            kind, start = name, place
    return ends


SCORES: dict[str, Callable[[Answers], float]] = {
    "accuracy": accuracy,
    "macro_f1": macro_f1,
    "span_f1": span_f1,
}
