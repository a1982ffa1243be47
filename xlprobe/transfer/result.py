"""A transfer study's result: its tables, what predicts the score, the claims' answers, advice."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import pandas as pd
from matplotlib.axes import Axes

from reports.errors import InputError
from reports.results import Result
from reports.xl_figures import outcome_scatter
from xlprobe.training.objectives import probe_layer
from xlprobe.transfer.advice import Advice, advise
from xlprobe.transfer.claims import claims
from xlprobe.transfer.prediction import predict

__all__ = ["Study", "table_of"]

_GRADIENT_COLUMNS = (
    "cosine",
    "corrected",
    "ratio",
    "task_halves",
    "align_halves",
    "source_target",
    "shuffled",
    "align_shuffled",
    "random_sd",
    "task_batches",
    "align_batches",
)


@dataclass(frozen=True, repr=False, eq=False)
class Study(Result):
    """Frames: `cells` (a row each pair × objective × task: delta_score with low, high, score, baseline, seed_sd, n,
    seeds; delta_retrieval and delta_gap, in the encoder's layer `layer`, with retrieval before and after;
    gradient_cosine with its interval and yardsticks, norm_ratio), `predictors` (`xlprobe.transfer.prediction`), `scores` (a row
    each seed), `distances` (pair, objective, stage, seed and the columns of `Distances.layers`), `gradients` (pair,
    objective, task and the columns of `Gradients.cells`; layer −1: summed over), `first_order`.

    Changes are against no alignment with the same seed; scores are accuracies as fractions. Objective "shuffled" is
    the control and takes no part in prediction or claims.
    """

    kind: ClassVar[str] = "transfer_study"

    cells: pd.DataFrame
    predictors: pd.DataFrame
    scores: pd.DataFrame
    distances: pd.DataFrame
    gradients: pd.DataFrame
    first_order: pd.DataFrame
    laboratory: str
    layer: int
    seeds: int
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def claims(self) -> list[dict[str, str]]:
        """The paper's claims with this study's answers: claim, answer, evidence."""
        return claims(_tried(self.cells), self.predictors)

    def advice(self, task: str, *, pair: str | None = None) -> Advice:
        """Objective, weight and frozen layers for `task`, from gradients before any training (`xlprobe.transfer.advice`).

        With `pair`, from that pair's gradients; without, from the mean over pairs. Errors: `InputError` for a task or
        pair that the study lacks.
        """
        rows = self.gradients[self.gradients["task"] == task]
        if pair is not None:
            rows = rows[rows["pair"] == pair]
        if rows.empty:
            raise InputError(
                f"task: the study has no gradients of {task!r}" + (f" on {pair!r}" if pair else "")
            )
        return advise(rows, task=task)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Change of retrieval against change of score; returns the axes."""
        return outcome_scatter(self.cells, ax, x="delta_retrieval", xlabel="change of retrieval")


def table_of(
    *,
    laboratory: str,
    seeds: int,
    scores: pd.DataFrame,
    effects: pd.DataFrame,
    distances: pd.DataFrame,
    gradients: pd.DataFrame,
    first_order: pd.DataFrame,
    provenance: dict[str, Any],
) -> Study:
    """The study from its tables: joins effects, distances and gradients to cells, and predicts."""
    layer = probe_layer(int(distances["layer"].max()))
    cells = effects.merge(_retrieval(distances, layer), on=["pair", "objective"], how="left")
    whole = gradients[gradients["scope"] == "encoder"]
    keep = ["pair", "objective", "task", *_GRADIENT_COLUMNS, "low", "high", "n_task", "n_align"]
    named = whole[keep].rename(
        columns={
            "cosine": "gradient_cosine",
            "ratio": "norm_ratio",
            "low": "cosine_low",
            "high": "cosine_high",
            "shuffled": "shuffled_cosine",
        }
    )
    cells = cells.merge(named, on=["pair", "objective", "task"], how="left")
    return Study(
        cells,
        predict(_tried(cells)),
        scores,
        distances,
        gradients,
        first_order,
        laboratory,
        layer,
        seeds,
        provenance,
    )


def _tried(cells: pd.DataFrame) -> pd.DataFrame:
    return cells[cells["objective"] != "shuffled"]


def _retrieval(distances: pd.DataFrame, layer: int) -> pd.DataFrame:
    """Change of weak retrieval and of the cosine gap by sentence, aligned against pretrained, mean over seeds."""
    rows = distances[(distances["layer"] == layer) & (distances["level"] == "sentence")]
    rows = rows[
        rows["metric"].isin(["weak_retrieval", "cosine"]) & rows["stage"].isin(["pretrained", "aligned"])
    ]
    rows = rows.assign(value=rows["gap"].where(rows["metric"] == "cosine", rows["matched"]))
    mean = rows.groupby(["pair", "objective", "metric"])["value"].mean().unstack("metric")
    found = []
    for (pair, objective), row in mean.iterrows():
        if objective == "none":
            continue
        before = mean.loc[(pair, "none")]
        found.append(
            {
                "pair": pair,
                "objective": objective,
                "retrieval_before": before["weak_retrieval"],
                "retrieval_after": row["weak_retrieval"],
                "delta_retrieval": row["weak_retrieval"] - before["weak_retrieval"],
                "delta_gap": row["cosine"] - before["cosine"],
            }
        )
    return pd.DataFrame(found)
