"""A statement in context as an edit: it changes nothing in the model and still changes what it says.

1. For every fact two prompts state the new object before the rewrite prompt: once for this subject (the statement
   should be followed), once for another fact's subject (it should be ignored).
2. Each is attributed for the new object (NLKA layer scores, nats); it is a success where the tokens that tell the new
   object from the old one follow (`mechedit.models.deciding`).
3. `difference` is the mean of the successes minus the mean of the failures, per layer and module, with a bootstrap
   interval over prompts.
4. The window is the contiguous run of layers whose attention differences, less their mean over all layers, sum
   to the most.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from experiments.progress import LONG, bar
from mechedit.attribution.scored_pass import ScoredPass
from mechedit.attribution.window import best_window, window_scores
from mechedit.data.facts import FactEdit
from mechedit.data.prompts import avoid
from mechedit.models.deciding import decide, says_object
from mechedit.models.hooked import HookedModel
from reports.errors import InputError
from reports.results import Result

__all__ = ["StatementContrast", "statement_contrast"]


@dataclass(frozen=True, eq=False, repr=False)
class StatementContrast(Result):
    """What a statement that succeeds writes, layer by layer, and one that fails does not.

    Attributes:
        layers: Frame layer, module, success, failure, difference, low, high (nats, 95 % bootstrap interval).
        heads: Frame layer, head and the same columns.
        window: First and last layer, both included.
        n_success: How many prompts succeed.
        n_failure: How many prompts fail.
        provenance: What it was measured with.
    """

    kind: ClassVar[str] = "statement_contrast"
    layers: pd.DataFrame
    heads: pd.DataFrame
    window: tuple[int, int]
    n_success: int
    n_failure: int
    provenance: dict[str, Any] = field(default_factory=dict)

    def windows(self) -> pd.DataFrame:
        """Every candidate window and its score, as `window_scores`."""
        return window_scores(_attention(self.layers))


def statement_contrast(
    model: HookedModel, facts: Sequence[FactEdit], *, heads: bool = True, seed: int = 0
) -> StatementContrast:
    """Attributes statements in context for the new object and contrasts those that succeed with those that fail.

    Cost: two forward passes a fact, and the vocabulary for each sub-layer and each head.

    Args:
        model: The model, as it is now.
        facts: Facts of at least two subjects.
        heads: Score heads too; without, their frame is empty.
        seed: Of the bootstrap.

    Raises:
        InputError: There are fewer than two subjects, or no statement succeeds, or none fails: then this model gives
            nothing to choose a window by.

    >>> import mechedit as me
    >>> from mechedit.factworld import edits
    >>> contrast = statement_contrast(me.load_model("factworld"), edits(4, seed=1))
    >>> sorted(contrast.layers.columns)
    ['difference', 'failure', 'high', 'layer', 'low', 'module', 'success']
    """
    if len({fact.subject for fact in facts}) < 2:
        raise InputError(
            f"facts: expected at least two subjects to contrast statements about, found {len(facts)}"
        )
    frames, of_heads, success = [], [], []
    with bar("statements", 2 * len(facts), unit="statement", delay=LONG) as shown:
        for i, fact in enumerate(facts):
            subjects = [later.subject for later in (*facts[i + 1 :], *facts[:i])]
            stranger = next(subject for subject in subjects if subject != fact.subject)
            for subject in (fact.subject, stranger):
                statement = fact.prompt.replace("{}", subject)
                old, new, space = fact.target_true, fact.target_new, fact.space
                prompt = avoid(statement, old, new, fact.rewrite_prompt, space=space)
                scored = ScoredPass(model, prompt, [new], space=space)
                scores = scored.layers(0, heads=heads)
                frames.append(scores.layers)
                of_heads.append(scores.heads)
                success.append(_says(model, scored, prompt, fact))
                shown.update()
    outcome = np.array(success)
    if outcome.all() or not outcome.any():
        observed = "every statement succeeded" if outcome.all() else "no statement succeeded"
        raise InputError(
            f"facts: expected statements in context that succeed and others that fail, found that {observed} "
            f"({len(outcome)}); this model gives no window, so give one: MEGA(window=(first, last))"
        )
    layers = _difference(frames, outcome, seed=seed)
    return StatementContrast(
        layers,
        _difference(of_heads, outcome, seed=seed),
        best_window(_attention(layers)),
        int(outcome.sum()),
        int((~outcome).sum()),
    )


def _says(model: HookedModel, scored: ScoredPass, prompt: str, fact: FactEdit) -> bool:
    """`says_object`, off the pass that has run already where one token decides."""
    objects = (fact.target_new, fact.target_true)
    new, old = (model.continuation(prompt, value, space=fact.space)[1].tolist() for value in objects)
    if decide(model.tokenizer, new, old).one_token:
        return scored.next_token == new[0]
    return says_object(model, [prompt], *objects, space=fact.space)[0]


def _attention(layers: pd.DataFrame) -> np.ndarray:
    return layers[layers["module"] == "attn"].sort_values("layer")["difference"].to_numpy()


def _difference(frames: list[pd.DataFrame], success: np.ndarray, *, seed: int) -> pd.DataFrame:
    scores = np.stack([frame["score"].to_numpy() for frame in frames])
    good, bad = scores[success], scores[~success]
    rng = np.random.default_rng(seed)
    resampled = np.stack([_resample(good, rng) - _resample(bad, rng) for _ in range(1000)])
    low, high = np.quantile(resampled, [0.025, 0.975], axis=0)
    return (
        frames[0]
        .drop(columns="score")
        .assign(
            success=good.mean(0),
            failure=bad.mean(0),
            difference=good.mean(0) - bad.mean(0),
            low=low,
            high=high,
        )
    )


def _resample(rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return rows[rng.integers(len(rows), size=len(rows))].mean(0)
