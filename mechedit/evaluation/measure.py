"""What a model says to the prompts of a fact, and the metrics that are made of it.

Steps: `measure` scores a list of questions (`mechedit.evaluation.questions`) on one model, edited or not, in batches;
`METRICS` says which role a metric reads and how it scores one prompt; `record_values` reduces the prompts of one
record. The definitions are in `mechedit.evaluation.metrics`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mechedit.attribution.tokens import joined_tokens
from mechedit.evaluation.metrics import (
    below,
    kept_for_specificity,
    margin,
    specific,
    unchanged,
)
from mechedit.evaluation.questions import Question
from mechedit.models.deciding import Deciding, begins, decide
from mechedit.models.scoring import Scored, score_pairs

__all__ = [
    "METRICS",
    "Metric",
    "PromptScore",
    "answer",
    "measure",
    "record_values",
]


@dataclass(frozen=True)
class PromptScore:
    """One prompt, scored.

    "new" is the new object, "true" the right answer before the edit (`Question.true`).

    Attributes:
        role: As `Question.role`.
        index: As `Question.index`.
        prompt: The text.
        nll_new: Nats per token of the new object.
        nll_true: Nats per token of the true answer.
        hit_new: Whether every token of the new object is the argmax, teacher-forced (1.0, 0.0, NaN).
        hit_true: The same of the true answer.
        p_new: Probability of the tokens that decide (`scored_new`).
        p_true: The same of the true answer.
        next_token: The decoded argmax; None where the logits hold a NaN.
        starts_new: Whether the argmax tokens are the deciding ones of the new object, or of a spelling of it (1.0, 0.0,
            NaN).
        gate_fired: None without a gate.
        share_new: The share of the new object's tokens that are the argmax.
        argmax: The argmax in the place of each token of the true answer, ids joined by spaces.
        base_p_new: `p_new` on the unedited model, of prompts that are to stay: of neighbours and other relations.
        base_p_true: `p_true` on the unedited model, of the same.
        base_argmax: `argmax` on the unedited model, of the same.
        scored_new: The tokens of the new object that decide (`mechedit.models.deciding`), as text, with the space
            before them; "" in results of earlier versions.
        scored_true: The same of the true answer.
        answer: What the model says behind the prompt, greedily, as far as the scored objects follow it: an object whole
            where it says that, else through its first other token; "" in results of earlier versions.
        base_answer: `answer` of the unedited model, of the rewrite prompt and those that are to stay.
    """

    role: str
    index: int
    prompt: str
    nll_new: float
    nll_true: float
    hit_new: float
    hit_true: float
    p_new: float
    p_true: float
    next_token: str | None
    starts_new: float
    gate_fired: bool | None
    share_new: float = math.nan
    argmax: str = ""
    base_p_new: float = math.nan
    base_p_true: float = math.nan
    base_argmax: str = ""
    scored_new: str = ""
    scored_true: str = ""
    answer: str = ""
    base_answer: str = ""


@dataclass(frozen=True)
class Metric:
    """Family and role of a metric, how a prompt scores, whether that is a proportion, which prompts count."""

    family: str
    role: str
    score: Callable[[PromptScore], float]
    proportion: bool = True
    keep: Callable[[PromptScore], bool] = lambda _: True


def _kept(prompt: PromptScore) -> float:
    """The share of the true answer's tokens at which the edited model says what the unedited one does."""
    if math.isnan(prompt.nll_true) or not prompt.base_argmax:
        return math.nan
    return unchanged(*([int(token) for token in ids.split()] for ids in (prompt.base_argmax, prompt.argmax)))


def _same_next(prompt: PromptScore) -> float:
    """Whether the edited model's next token is the unedited one's."""
    if prompt.next_token is None or not prompt.base_argmax:
        return math.nan
    return float(prompt.argmax.split()[0] == prompt.base_argmax.split()[0])


def _all_kept(prompt: PromptScore) -> float:
    share = _kept(prompt)
    return math.nan if math.isnan(share) else float(share == 1)


METRICS: dict[str, Metric] = {
    "ES": Metric("probability", "rewrite", lambda p: below(p.nll_new, p.nll_true)),
    "EM": Metric("probability", "rewrite", lambda p: margin(p.nll_new, p.nll_true), proportion=False),
    "ES_acc": Metric("probability", "rewrite", lambda p: p.hit_new),
    "PS": Metric("probability", "paraphrase", lambda p: below(p.nll_new, p.nll_true)),
    "PM": Metric("probability", "paraphrase", lambda p: margin(p.nll_new, p.nll_true), proportion=False),
    "PS_acc": Metric("probability", "paraphrase", lambda p: p.hit_new),
    "NS": Metric("probability", "neighborhood", lambda p: below(p.nll_true, p.nll_new)),
    "NM": Metric("probability", "neighborhood", lambda p: margin(p.nll_true, p.nll_new), proportion=False),
    "NS_acc": Metric("probability", "neighborhood", lambda p: p.hit_true),
    "Acc": Metric("argmax", "rewrite", lambda p: p.starts_new),
    "Gen": Metric("argmax", "paraphrase", lambda p: p.starts_new),
    "Spec": Metric(
        "argmax",
        "neighborhood",
        lambda p: specific(p.gate_fired, p.p_new, p.p_true),
        keep=lambda p: kept_for_specificity(p.base_p_new, p.base_p_true),
    ),
    "Rel_tok": Metric("token", "rewrite", lambda p: p.share_new, proportion=False),
    "Rel_all": Metric("token", "rewrite", lambda p: p.hit_new),
    "Gen_tok": Metric("token", "paraphrase", lambda p: p.share_new, proportion=False),
    "Gen_all": Metric("token", "paraphrase", lambda p: p.hit_new),
    "Loc_tok": Metric("token", "neighborhood", _kept, proportion=False),
    "Loc_all": Metric("token", "neighborhood", _all_kept),
    "DI": Metric("doubt", "doubt_1", lambda p: p.starts_new),
    "DII": Metric("doubt", "doubt_2", lambda p: p.starts_new),
    "Other": Metric("subject", "other_relation", _same_next),
}


def measure(model: Any, questions: Sequence[Question], *, batch_size: int = 32) -> list[PromptScore]:
    """Scores each question, in their order: the new object and the true answer behind every prompt.

    Args:
        model: A `HookedModel`, or what an editor yields; if it has a gate, that is asked for each prompt.
        questions: What is asked (`mechedit.evaluation.questions`).
        batch_size: Prompts of one forward pass.
    """
    if not questions:
        return []
    new = [model.continuation(q.prompt, q.fact.target_new, space=q.fact.space) for q in questions]
    true = [model.continuation(q.prompt, q.true, space=q.fact.space) for q in questions]
    scores = score_pairs(model, new + true, batch_size=batch_size)
    fired = model.gate_fired([q.prompt for q in questions]) or [None] * len(questions)
    rows = zip(questions, scores[: len(new)], scores[len(new) :], fired, strict=True)
    measured = [_prompt_score(model, *row) for row in rows]
    return _with_aliases(model, questions, measured, scores, batch_size=batch_size)


def record_values(scores: Sequence[PromptScore], families: Sequence[str]) -> list[dict[str, Any]]:
    """metric, value, n_prompts, n_dropped of one record: the mean over its prompts, NaN where it has none.

    >>> record_values([], ["doubt"])[0]
    {'metric': 'DI', 'value': nan, 'n_prompts': 0, 'n_dropped': 0}
    """
    rows = []
    for name, metric in METRICS.items():
        if metric.family in families:
            of_role = [score for score in scores if score.role == metric.role]
            values = [metric.score(score) for score in of_role if metric.keep(score)]
            value = sum(values) / len(values) if values else math.nan
            rows.append(
                {
                    "metric": name,
                    "value": value,
                    "n_prompts": len(values),
                    "n_dropped": len(of_role) - len(values),
                }
            )
    return rows


def _prompt_score(
    model: Any, question: Question, new: Scored, true: Scored, fired: bool | None
) -> PromptScore:
    fact, tokenizer = question.fact, model.tokenizer
    decided = decide(tokenizer, new.ids, true.ids)
    token = None if new.next_id is None else str(tokenizer.decode([new.next_id])).strip()
    return PromptScore(
        role=question.role,
        index=question.index,
        prompt=question.prompt,
        nll_new=new.nll,
        nll_true=true.nll,
        hit_new=new.all_hit,
        hit_true=true.all_hit,
        p_new=math.exp(float(new.logps[: decided.n_new].sum())),
        p_true=math.exp(float(true.logps[: decided.n_old].sum())),
        next_token=token,
        starts_new=_begun(tokenizer, new, true, decided, (fact.target_new, question.true)),
        gate_fired=fired,
        share_new=new.share_hit,
        argmax=" ".join(map(str, true.argmax)),
        scored_new=joined_tokens(tokenizer, new.ids[: decided.n_new]),
        scored_true=joined_tokens(tokenizer, true.ids[: decided.n_old]),
        answer=answer(tokenizer, new, true),
    )


def answer(tokenizer: Any, *scores: Scored) -> str:
    """What the model says behind a prompt, off the scores of objects there (`PromptScore.answer`); "" for NaN."""
    longest: tuple[int, ...] = ()
    for scored in scores:
        pairs = zip(scored.ids, scored.argmax, strict=True)
        followed = next(
            (i for i, (token, likeliest) in enumerate(pairs) if token != likeliest), len(scored.ids)
        )
        longest = max(longest, scored.argmax[: followed + 1], key=len)
    if not longest or any(scored.next_id is None for scored in scores):
        return ""
    return joined_tokens(tokenizer, longest).strip(" ")


def _begun(tokenizer: Any, new: Scored, true: Scored, decided: Deciding, texts: tuple[str, str]) -> float:
    """`begins` of teacher-forced scores; NaN where a logit is."""
    if new.logps[: decided.n_new].isnan().any():
        return math.nan
    return _says(tokenizer, new.argmax, true, decided, texts)


def _says(
    tokenizer: Any, argmax: Sequence[int], true: Scored, decided: Deciding, texts: tuple[str, str]
) -> float:
    """`begins` of the likeliest tokens in the place of an object's, beside the scores of the true one."""
    n = decided.n_new
    goes_on = decided.begins_old and true.argmax[n] == true.ids[n]
    return begins(tokenizer, argmax, decided, texts, goes_on=goes_on)


def _with_aliases(
    model: Any,
    questions: Sequence[Question],
    measured: Sequence[PromptScore],
    scores: Sequence[Scored],
    *,
    batch_size: int,
) -> list[PromptScore]:
    """`measured`, where a prompt is also answered by another spelling of the new object.

    The likeliest token behind the prompt is known: it decides alone, or must begin a spelling that is read on.
    """
    results, asked = list(measured), []
    for i, (question, score) in enumerate(zip(questions, measured, strict=True)):
        true = scores[len(questions) + i]
        for name in question.fact.target_new_aliases if score.starts_new == 0.0 else ():
            pair = model.continuation(question.prompt, name, space=question.fact.space)
            decided = decide(model.tokenizer, pair[1].tolist(), true.ids)
            if decided.n_new == 1:
                if _says(model.tokenizer, true.argmax[:1], true, decided, (name, question.true)) == 1.0:
                    results[i] = replace(results[i], starts_new=1.0)
            elif decided.new[0] == true.argmax[0]:
                asked.append((i, name, decided, pair))
    named = score_pairs(model, [pair for *_, pair in asked], batch_size=batch_size)
    for (i, name, decided, _), alias in zip(asked, named, strict=True):
        true = scores[len(questions) + i]
        if _says(model.tokenizer, alias.argmax, true, decided, (name, questions[i].true)) == 1.0:
            results[i] = replace(results[i], starts_new=1.0)
    return results
