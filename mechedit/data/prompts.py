"""The prompt forms of the editing literature, word for word: statements in context and doubts.

`p` is a prompt without its answer ("The mother tongue of Anna Novak is"), an object is a bare string ("French");
`space` says whether a space stands between the two (`mechedit.data.joining`).
Sources: SAKE (arXiv 2503.01751) for source, target, implication and doubt prompts; IKE for demonstrations.
"""

from __future__ import annotations

from mechedit.data.joining import Space, joined


def repeat(p: str, value: str, q: str | None = None, *, space: Space = "auto") -> str:
    """Forced source: the model is told `value` and then `q` (by default the same prompt).

    >>> repeat("Anna speaks", "French")
    "Repeat this sentence: 'Anna speaks French'. Anna speaks"
    """
    return f"Repeat this sentence: '{joined(p, value, space)}'. {p if q is None else q}"


def avoid(p: str, old: str, new: str, q: str | None = None, *, space: Space = "auto") -> str:
    """Target: as `repeat` with the new object, and the old one forbidden.

    >>> avoid("Anna speaks", "French", "Greek")
    "Do not mention 'French'. Repeat this sentence: 'Anna speaks Greek'. Anna speaks"
    """
    return f"Do not mention '{old}'. {repeat(p, new, q, space=space)}"


def consider(fact: str, c: str) -> str:
    """Source of an implication prompt `c`: the original fact is recalled first.

    >>> consider("Ann was born in Paris", "Ann's country is")
    "Considering this context is now true: 'Ann was born in Paris'. Complete this sentence:Ann's country is"
    """
    return f"Considering this context is now true: '{fact}'. Complete this sentence:{c}"


def pretend(fact: str, c: str) -> str:
    """Target of an implication prompt `c`: the edited fact is asserted.

    >>> pretend("Anna was born in Athens", "Anna's country is").endswith("complete this sentence:Anna's country is")
    True
    """
    return (
        f"Pretend that this context is true and forget your previous knowledge: '{fact}'. "
        f"Now, based on the previous context only, complete this sentence:{c}"
    )


def demonstration(p: str, value: str, q: str, answer: str = "", *, space: Space = "auto") -> str:
    r"""One new fact and a prompt to complete, as IKE shows it; without `answer` it is the question.

    >>> demonstration("Anna speaks", "Greek", "Anna's language is")
    "New Fact: Anna speaks Greek\nPrompt: Anna's language is"
    """
    asked = joined(q, answer, space) if answer else q
    return f"New Fact: {joined(p, value, space)}\nPrompt: {asked}"


def doubt(q: str, new: str, *, space: Space = "auto") -> str:
    """DI: the new answer is called wrong.

    >>> doubt("Anna speaks", "Greek")[:40]
    "Anna speaks Greek??? No, it can't be, Th"
    """
    return (
        f"{joined(q, new, space)}??? No, it can't be, This contradicts my understanding. It is pretty clear that the "
        f"answer to '{q}' is something else. Rethink and give the correct answer:"
    )


def doubt_old(q: str, new: str, old: str, *, space: Space = "auto") -> str:
    """DII: the old answer is claimed instead.

    >>> doubt_old("Anna speaks", "Greek", "French").endswith("question Anna speaks? should be")
    True
    """
    return (
        f"{joined(q, new, space)}? Really? But I am pretty sure that {joined(q, old, space)}. Am I right? Yes, you are "
        f"right. I apologize for any confusion. Reconsider that the answer to question {q}? should be"
    )
