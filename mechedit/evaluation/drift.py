"""Does an edited model keep to the new object while it writes on, or drift back to the old one?

Steps, for each fact: edit, continue the rewrite prompt by `LENGTH` tokens (sampled from the 5 likeliest, past an end
token, so that all texts are as long), undo, and read the text:

- starts: the text begins with the new object;
- returns: the old object occurs in it; `words_before` is how many words stand before its first occurrence;
- entropy: GE, n-gram entropy in bits (`mechedit.evaluation.fluency`), for a text that repeats itself has little of it.

Wrong as a measure of belief where a text may name the old object for another reason: read it beside the unedited
model's, which is the control.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pandas as pd

from experiments.progress import track
from mechedit.data.facts import FactEdit, facts_hash
from mechedit.editors.base import Editor
from mechedit.editors.settings import resolved
from mechedit.evaluation.fluency import LENGTH, TOP_K, ngram_entropy, words
from mechedit.models.generation import generate
from mechedit.models.hooked import HookedModel
from reports.errors import InputError
from reports.intervals import bootstrap_mean, wilson
from reports.results import Result

__all__ = ["Drift", "drift", "read_text"]


@dataclass(frozen=True, eq=False, repr=False)
class Drift(Result):
    """What edited models wrote.

    Attributes:
        texts: Columns editor, case_id, starts, returns, words_before (NaN where the old object does not occur),
            entropy, text.
    """

    kind: ClassVar[str] = "drift"
    texts: pd.DataFrame
    provenance: dict[str, Any] = field(default_factory=dict)

    def summary(self) -> pd.DataFrame:
        """One row an editor: n, and starts, returns (Wilson), entropy (bootstrap), each with _low and _high."""
        rows = []
        for editor, texts in self.texts.groupby("editor", sort=False):
            row: dict[str, Any] = {"editor": editor, "n": len(texts)}
            for name in ("starts", "returns"):
                low, high = wilson(int(texts[name].sum()), len(texts))
                row |= {name: float(texts[name].mean()), f"{name}_low": low, f"{name}_high": high}
            low, high = bootstrap_mean(texts["entropy"].to_numpy())
            rows.append(
                row | {"entropy": float(texts["entropy"].mean()), "entropy_low": low, "entropy_high": high}
            )
        return pd.DataFrame(rows)


def drift(
    model: HookedModel,
    editors: Sequence[Editor],
    facts: Sequence[FactEdit],
    *,
    length: int = LENGTH,
    seed: int = 0,
    progress: bool = True,
) -> Drift:
    """Lets the model write about each fact under each editor, one at a time. Errors of the editors pass through.

    Args:
        model: The unedited model.
        editors: What edits it; `NoEdit` is the control.
        facts: The edits.
        length: Tokens that are written behind each rewrite prompt.
        seed: Of the draws.
        progress: Whether bars are shown.

    Raises:
        InputError: There are no facts or no editors, or the length is below 1.

    >>> import mechedit as me
    >>> model, facts = me.load_model("factworld"), me.factworld.edits(2)
    >>> mega = me.editors.MEGA(window=(5, 7), alpha=1.0, gate="always")
    >>> drift(model, [mega], facts, length=12, progress=False).summary()["starts"].tolist()
    [1.0]
    """
    if not facts or not editors or length < 1:
        raise InputError(
            "facts: expected at least one, and editors and a length of 1 or more, found "
            f"{len(facts)}, {len(editors)}, {length}"
        )
    rows = []
    for editor in editors:
        for fact in track(facts, label=f"{editor.name}: text", progress=progress, unit="text"):
            with editor.apply(model, [fact]) as edited:
                text = generate(
                    edited,
                    edited.encode([fact.rewrite_prompt]),
                    max_new_tokens=length,
                    top_k=TOP_K,
                    seed=seed,
                    temperature=1.0,
                    batch_size=1,
                    past_end=True,
                )[0]
            rows.append({"editor": editor.name, "case_id": str(fact.case_id), **read_text(text, fact)})
    provenance = model.provenance(data={"facts": facts_hash(facts)}, seeds={"generation": seed})
    used = {editor.name: resolved(editor, model) for editor in editors}
    return Drift(pd.DataFrame(rows), provenance={**provenance, "settings": used})


def read_text(text: str, fact: FactEdit) -> dict[str, Any]:
    """The row of one text in `Drift.texts`; whole words count.

    >>> fact = FactEdit("Ann", "{} speaks", "Dutch", "Greek")
    >>> read = read_text(" Greek. Once she spoke Dutch.", fact)
    >>> read["starts"], read["returns"], read["words_before"]
    (True, True, 5.0)
    """
    written, new, old = (words(part) for part in (text, fact.target_new, fact.target_true))
    places = [i for i in range(len(written) - len(old) + 1) if written[i : i + len(old)] == old]
    return {
        "starts": written[: len(new)] == new,
        "returns": bool(places),
        "words_before": float(places[0]) if places else float("nan"),
        "entropy": ngram_entropy(text),
        "text": text,
    }
