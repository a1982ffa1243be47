"""A transfer study's result: its tables, what predicts the score, the claims' answers, advice."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, overload

import pandas as pd
from matplotlib.axes import Axes

from reports.errors import InputError
from reports.missing import explained
from reports.plot import Plot
from reports.results import Result
from reports.xl_figures import outcome_scatter
from xlprobe.transfer.advice import Advice, advise
from xlprobe.transfer.claims import claims
from xlprobe.transfer.contest import contest, gradients_say_more
from xlprobe.transfer.guidelines import guidelines
from xlprobe.transfer.orthogonal import angles
from xlprobe.transfer.prediction import predict
from xlprobe.transfer.reach import KEYS, common_rows, whole_rows
from xlprobe.transfer.trained import robustness

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
#: What is compared between objectives, under the names of the columns of `cells` that it is put beside.
_COMPARED = {"gradient_cosine": "common_cosine", "norm_ratio": "common_ratio"}


@dataclass(frozen=True, repr=False, eq=False)
class Study(Result):
    """A study's tables and what follows from them.

    Changes are against no alignment with the same seed; scores are accuracies as fractions. The objective "shuffled" is
    the control and takes no part in prediction or claims.

    Attributes:
        cells: A row each pair × objective × task: delta_score with low, high, score, baseline, seed_sd, n, seeds;
            where two parts were trained delta_score_PART, low_PART, high_PART, score_PART, baseline_PART of the second
            (`xlprobe.transfer.trained`); delta_retrieval, delta_strong, delta_csls, delta_gap (in the study's layer;
            delta_gap_early one third up, delta_gap_last in the last) and delta_cka, with retrieval before and after;
            gradient_cosine with its interval and yardsticks, norm_ratio, over the parameters that both losses reach;
            common_cosine, common_ratio over those that all objectives reach (predictors take these); whole_cosine,
            whole_ratio over all blocks; agreeing, the share of parameters without conflict; missing says why a value is
            nan.
        predictors: What predicts the change of score (`xlprobe.transfer.prediction`).
        scores: As `cells`, a row each trained part (train: "all" or "head") and seed.
        distances: Frame pair, objective, stage, seed and the columns of `Distances.layers`.
        gradients: Frame pair, objective, task and the columns of `Gradients.cells`; layer −1: summed over.
        first_order: Frame pair, objective, task and the columns of `Gradients.first_order`.
        laboratory: Name of the material.
        layer: The encoder's layer of delta_retrieval and delta_gap.
        seeds: The number of seeds.
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
        tried = _tried(self.cells)
        return [*claims(tried, self.predictors), *gradients_say_more(_compared(tried)), *robustness(tried)]

    @property
    def contest(self) -> pd.DataFrame:
        """The best predictor against each of the others (`xlprobe.transfer.contest`)."""
        return contest(_compared(_tried(self.cells)))

    @property
    def angles(self) -> pd.DataFrame:
        """Each layer's cosine beside those that two useful gradients make (`xlprobe.transfer.orthogonal`)."""
        return angles(self.gradients)

    @overload
    def advice(self, task: None = None, *, pair: None = None) -> pd.DataFrame: ...

    @overload
    def advice(self, task: str, *, pair: str | None = None) -> Advice: ...

    def advice(self, task: str | None = None, *, pair: str | None = None) -> Advice | pd.DataFrame:
        """Objective, weight and frozen layers, from gradients before any training (`xlprobe.transfer.advice`).

        Without a task: the study's guidelines, a frame with a row each line (`xlprobe.transfer.guidelines`).

        Args:
            task: The task.
            pair: The pair whose gradients count; by default the mean over pairs.

        Raises:
            InputError: The study lacks the task or the pair.
        """
        if task is None:
            return self._guidelines()
        rows = self.gradients[self.gradients["task"] == task]
        if pair is not None:
            rows = rows[rows["pair"] == pair]
        if rows.empty:
            raise InputError(
                f"task: the study has no gradients of {task!r}" + (f" on {pair!r}" if pair else "")
            )
        return advise(rows, task=task)

    def _guidelines(self) -> pd.DataFrame:
        tried = _tried(self.cells)
        encoder = self.provenance.get("model", {}).get("name", "one encoder")
        names = {key: ", ".join(dict.fromkeys(map(str, tried[key]))) for key in ("pair", "objective")}
        return guidelines(
            self.cells,
            advice={str(task): self.advice(str(task)) for task in dict.fromkeys(tried["task"])},
            contest=self.contest,
            predictors=self.predictors,
            robustness=robustness(tried),
            condition=(
                f"{encoder} on {self.laboratory}; {names['pair']}; {names['objective']} tried; {self.seeds} "
                f"seed{'s' if self.seeds > 1 else ''}"
            ),
        )

    def plot(self, ax: Axes | None = None) -> Plot:
        """Draw the change of retrieval against the change of score."""
        drawn = outcome_scatter(self.cells, ax, x="delta_retrieval", xlabel="change of retrieval")
        return Plot(drawn, title=f"Alignment against transfer: {self.laboratory}")


def table_of(
    *,
    laboratory: str,
    layer: int,
    seeds: int,
    scores: pd.DataFrame,
    effects: pd.DataFrame,
    distances: pd.DataFrame,
    gradients: pd.DataFrame,
    first_order: pd.DataFrame,
    provenance: dict[str, Any],
) -> Study:
    """The study from its tables: joins effects, distances and gradients to cells, and predicts."""
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
    for name, rows in (("common", common_rows(gradients)[0]), ("whole", whole_rows(gradients))):
        beside = rows[[*KEYS, "cosine", "ratio"]]
        beside = beside.rename(columns={"cosine": f"{name}_cosine", "ratio": f"{name}_ratio"})
        cells = cells.merge(beside, on=list(KEYS), how="left")
    cells = _explained(cells.merge(_agreeing(gradients), on=list(KEYS), how="left"))
    return Study(
        cells,
        predict(_compared(_tried(cells))),
        scores,
        distances,
        gradients,
        first_order,
        laboratory,
        layer,
        seeds,
        provenance,
    )


def _explained(cells: pd.DataFrame) -> pd.DataFrame:
    """The cells with the reasons of their NaNs; those of gradients are the control's, or stand with the gradients."""
    reason = cells["objective"].map({"shuffled": "the control has no gradients of its own"})
    reason = reason.fillna("its row of the study's gradients says why")
    behind = list(cells)[list(cells).index("gradient_cosine") :]
    return explained(cells, dict.fromkeys(behind, reason))


def _tried(cells: pd.DataFrame) -> pd.DataFrame:
    return cells[cells["objective"] != "shuffled"]


def _compared(cells: pd.DataFrame) -> pd.DataFrame:
    """The cells with what predictors take: gradients where all objectives reach."""
    return cells.assign(**{name: cells[other] for name, other in _COMPARED.items() if other in cells})


def _agreeing(gradients: pd.DataFrame) -> pd.DataFrame:
    """The share of the blocks' parameters in whose cells both losses reach and do not conflict."""
    rows = gradients[(gradients["scope"] == "cell") & (gradients["layer"] > 0)].dropna(subset=["cosine"])
    rows = rows.assign(agreeing=rows["numel"] * (rows["cosine"] >= 0))
    sums = rows.groupby(list(KEYS), sort=False)[["agreeing", "numel"]].sum()
    return (sums["agreeing"] / sums["numel"]).rename("agreeing").reset_index()


#: Columns of the cells: the measure whose change they are, and the layer as a share of the depth (None: the study's).
_DELTAS: dict[str, tuple[str, float | None]] = {
    "delta_retrieval": ("weak_retrieval", None),
    "delta_gap": ("cosine", None),
    "delta_strong": ("strong_retrieval", None),
    "delta_csls": ("csls_retrieval", None),
    "delta_cka": ("cka", None),
    "delta_gap_early": ("cosine", 1 / 3),
    "delta_gap_last": ("cosine", 1.0),
}


def _retrieval(distances: pd.DataFrame, layer: int) -> pd.DataFrame:
    """Changes of what is measured by sentence, aligned against pretrained, mean over seeds; gaps but for retrieval."""
    rows = distances[(distances["level"] == "sentence") & distances["stage"].isin(["pretrained", "aligned"])]
    rows = rows.assign(value=rows["gap"].where(~rows["metric"].str.endswith("retrieval"), rows["matched"]))
    mean = rows.groupby(["pair", "objective", "metric", "layer"])["value"].mean()
    depth, known = int(distances["layer"].max()), set(rows["metric"])
    cells = []
    for pair, objective in mean.index.droplevel(["metric", "layer"]).unique():
        if objective == "none":
            continue
        cell: dict[str, object] = {"pair": pair, "objective": objective}
        before, after = (
            mean.get((pair, name, "weak_retrieval", layer), math.nan) for name in ("none", objective)
        )
        cell |= {"retrieval_before": before, "retrieval_after": after}
        for name, (metric, share) in _DELTAS.items():
            if metric in known:  # studies of earlier versions measured fewer
                at = (metric, layer if share is None else round(share * depth))
                cell[name] = mean[(pair, objective, *at)] - mean[(pair, "none", *at)]
        cells.append(cell)
    return pd.DataFrame(cells)
