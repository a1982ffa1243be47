"""The sections of the pages of single results: distances, gradients, scores of a task, a training.

As in `reports.sections`, every number is written out here and the sentence beneath a figure names what it shows. Each
function takes the result as it was saved (frames and plain values) and returns the facts at the head of the page and
its sections; nothing here knows a model.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import pandas as pd
from markupsafe import Markup

from reports import sections, xl_figures
from reports.forests import forest
from reports.inline import fragment
from reports.intervals import wilson
from reports.look import row
from reports.missing import COLUMN
from reports.text import visible

__all__ = ["HICTL", "READING", "distances", "gradients", "scores", "training"]

Page = tuple[list[tuple[str, str]], list[dict[str, Any]]]

#: What a measure is called, in the order of the page.
METRICS = {
    "cosine": "cosine",
    "weak_retrieval": "retrieval (weak)",
    "cka": "linear CKA",
    "strong_retrieval": "retrieval (strong)",
    "rotated_retrieval": "retrieval (rotated)",
    "csls_retrieval": "retrieval (CSLS)",
    "margin_retrieval": "retrieval (margin)",
    "euclidean": "Euclidean",
}
_DRAWN = 3  # panels side by side
_LEVELS = {"sentence": "By sentence", "token": "By aligned word"}
_SCOPES = {"encoder": "reached by both", "whole": "all blocks"}
_INTERVALS = ("Intervals", "are 95 %. Those of distances hold the pairs, those of cosines the batches.")

READING: dict[str, list[tuple[str, str]]] = {
    "distances": [
        (
            "Matched minus random.",
            "An encoder's space is anisotropic: unrelated sentences have a high cosine too. Only what matched pairs "
            "have over pairs that do not belong together says something. Closer is a positive gap, of the Euclidean "
            "distance a negative one.",
        ),
        (
            "Retrieval",
            "is the share of sentences whose translation is the nearest (strong: nearer than every sentence of the own "
            "language too; rotated: behind the best rotation). It gets harder as n grows: compare on the same n.",
        ),
        _INTERVALS,
    ],
    "gradients": [
        (
            "Cosine.",
            "Of the two mean gradients over the shared parameters; heads never, embeddings apart. Above 0 a step on "
            "the alignment lowers the task's loss. In brackets: the interval holds 0.",
        ),
        (
            "Yardsticks.",
            "Halves: two halves of the same loss's batches; far below 1, the gradients are mostly noise and every "
            "cosine is pulled to 0 (“corrected” takes that pull out). Source–target: the task's gradient in the two "
            "languages. Shuffled: alignment on pairs that do not belong together. Random: the spread of random "
            "directions, 1/√d.",
        ),
        ("Batches", "are how many a mean needs for a cosine of 0.95 with the true gradient."),
        _INTERVALS,
    ],
    "scores": [
        ("Zero-shot.", "The task is learned in one language and asked in the others."),
        ("Lost", "are words that the encoder never saw, cut off or without a token; they count as wrong."),
        (
            "Intervals",
            "of a seed are Wilson's, of the words (or texts) asked; sd is the spread of the seeds.",
        ),
    ],
    "training": [
        ("Loss", "of each step, as trained on; the heavy line is its mean over a tenth of the steps."),
        ("Retrieval", "is weak, on held-out pairs, in the layer that is aligned, with Wilson's interval."),
        ("Settings", "are all that the weights depend on; another training is refused in the same folder."),
    ],
}

#: Stands on every page on which an objective is hictl, or one of its terms.
HICTL = (
    "HiCTL",
    "(Wei et al. 2021, arXiv 2007.15960) is written from the field's memory of it, not from its text: two levels, "
    "sentences and words; all other sentences of both languages as negatives, moved towards the query, never nearer "
    "than the translation; the bag of both sides' words against words of the vocabulary; masked LM beside them. Chosen "
    "here: cosine with temperature 0.1, how far negatives are moved by the batch at hand, each side's own vector as "
    "the query, 512 words drawn uniformly, equal weights, the layer and pooling of the other objectives.",
)


# -- distances -----------------------------------------------------------------------------------------------------


def distances(frames: dict[str, pd.DataFrame], values: dict[str, Any]) -> Page:
    """Returns the page of saved distances."""
    layers = frames["layers"]
    pairs = int(layers.loc[layers["level"] == layers["level"].iloc[0], "n"].max())
    facts = [
        ("encoder", values["encoder"]),
        ("pairs", f"{pairs:,}"),
        ("pooling", values.get("pooling", "mean")),
    ]
    for name, key in (("left out", "n_left_out"), ("cut off", "n_cut")):
        facts += [(name, str(values[key]))] if values.get(key) else []
    made = [
        _level(rows, str(level), values["encoder"]) for level, rows in layers.groupby("level", sort=False)
    ]
    return facts, made


def _level(rows: pd.DataFrame, level: str, encoder: str) -> dict[str, Any]:
    metrics = [name for name in METRICS if name in set(rows["metric"])]
    drawn = rows[rows["metric"].isin(metrics[:_DRAWN])].assign(stage=encoder)
    drawn = drawn.sort_values("metric", key=lambda names: names.map(metrics.index), kind="stable")
    best = [_best(rows[rows["metric"] == name], name) for name in metrics[:_DRAWN]]
    axes = xl_figures.distance_curves(drawn, titles=METRICS)[0]
    title = f"{_LEVELS.get(level, level)}: gap by layer"
    head = ["Layer", *(METRICS[name] for name in metrics)]
    by_layer = {layer: part.set_index("metric") for layer, part in rows.groupby("layer")}
    gaps = [[str(layer), *(_gap(part, name) for name in metrics)] for layer, part in by_layer.items()]
    plain = [[str(layer), *(_both(part, name) for name in metrics)] for layer, part in by_layer.items()]
    n = int(rows["n"].max())
    return {
        "id": level,
        "title": _LEVELS.get(level, level),
        "text": "",
        "pictures": [_picture(axes, f"curve-{level}", title, " ".join(best))],
        "tables": [
            _table(f"{title}, table", head, gaps, f"Matched − random, with 95 % interval; n {n:,}."),
            _table(f"{level}: matched and random", head, plain, "Matched / random."),
        ],
        "missing": _reasons(rows, {"gap": "Gap"}),
    }


def _best(rows: pd.DataFrame, metric: str) -> str:
    known = rows.dropna(subset=["gap"])
    if known.empty:
        return f"{METRICS[metric]}: undefined."
    top = known.loc[known["gap"].abs().idxmax()]
    return f"Largest {METRICS[metric]}: layer {top['layer']}, {_signed(top['gap'])}."


def _gap(part: pd.DataFrame, metric: str) -> str:
    return _with_interval(part.loc[metric], "gap") if metric in part.index else "–"


def _both(part: pd.DataFrame, metric: str) -> str:
    if metric not in part.index:
        return "–"
    return f"{_plain(part.loc[metric, 'matched'])} / {_plain(part.loc[metric, 'random'])}"


# -- gradients -----------------------------------------------------------------------------------------------------


def gradients(frames: dict[str, pd.DataFrame], values: dict[str, Any]) -> Page:
    """Returns the page of saved gradients."""
    cells, n, loss = frames["cells"], values["n"], values["loss"]
    facts = [("task", values["task"]), ("alignment", values["alignment"])]
    facts += [("batches", f"{n['task']} / {n['align']}")]
    facts += [("loss", f"{loss['task']:.3g} / {loss['align']:.3g}")]
    made = [_whole(cells), _map(cells), _by_layer(cells)]
    if len(frames["first_order"]):
        made.append(_first_order(frames["first_order"]))
    return facts, made


def _whole(cells: pd.DataFrame) -> dict[str, Any]:
    whole = cells[cells["scope"].isin(list(_SCOPES)) & (cells["group"] == "all")]
    columns = {"corrected": "Corrected", "task_halves": "Task halves", "align_halves": "Align. halves"}
    columns |= {
        "source_target": "Source–target",
        "shuffled": "Shuffled",
        "align_shuffled": "Align.–shuffled",
    }
    rows = []
    for cell in whole.to_dict("records"):
        cosines = [_signed(cell[name]) for name in columns]
        needed = f"{_whole_number(cell['task_batches'])} / {_whole_number(cell['align_batches'])}"
        rest = [_plain(cell["random_sd"], 4), _plain(cell["ratio"]), needed]
        rows.append([_SCOPES[cell["scope"]], _with_interval(cell, "cosine"), *cosines, *rest])
    head = ["Over", "Cosine", *columns.values(), "Random sd", "Norm ratio", "Batches"]
    return {
        "id": "whole",
        "title": "Do task and alignment pull the same way?",
        "text": "Cosine of the two mean gradients over the parameters that both losses reach, and over all blocks, "
        "beside its yardsticks; ratio of norms, alignment to task.",
        "pictures": [],
        "tables": [_table("Cosine of the encoder", head, rows)],
        "missing": _reasons(whole, {"cosine": "Cosine", **columns, "ratio": "Norm ratio"}),
    }


def _map(cells: pd.DataFrame) -> dict[str, Any]:
    part = cells[cells["scope"] == "cell"]
    known = part.dropna(subset=["cosine"])
    said = "No cell is reached by both losses."
    if not known.empty:
        place = known.loc[known["cosine"].abs().idxmax()]
        said = f"Largest: layer {place['layer']}, {place['group']}, {_signed(place['cosine'])}. Hatched: not reached."
    axes = xl_figures.cosine_heatmap(part.astype({"layer": "int64"}))
    return {
        "id": "map",
        "title": "By layer and kind of parameter",
        "text": "",
        "pictures": [_picture(axes, "map", "Cosine by layer and kind of parameter", said)],
        "tables": [],
        "missing": [],
    }


def _by_layer(cells: pd.DataFrame) -> dict[str, Any]:
    part = cells[cells["scope"] == "layer"]
    rows = [
        [str(row["layer"]), _with_interval(row, "cosine"), _signed(row["corrected"])]
        + [f"{row[name]:.3g}" for name in ("task_norm", "align_norm")]
        + [_plain(row["ratio"])]
        for row in part.to_dict("records")
    ]
    head = ["Layer", "Cosine", "Corrected", "‖g task‖", "‖g align‖", "Ratio"]
    caption = "Layer 0: the embeddings."
    table = _table("Cosine by layer", head, rows, caption)
    made = _section("layers", "By layer", [], [table])
    return made | {
        "missing": _reasons(part, {"cosine": "Cosine", "corrected": "Corrected", "ratio": "Ratio"})
    }


def _first_order(frame: pd.DataFrame) -> dict[str, Any]:
    rows = [
        [
            f"{row.relative_step:.0e}",
            *(_signed(value, 5) for value in (row.predicted, row.measured, row.symmetric)),
        ]
        for row in frame.itertuples()
    ]
    head = ["Step, of ‖θ‖", "Predicted", "Measured", "Free of the second order"]
    return {
        "id": "first-order",
        "title": "What one step on the alignment does to the task",
        "text": "Change of the task's loss, as the gradients predict it and as it was measured.",
        "pictures": [],
        "tables": [_table("First-order check", head, rows)],
        "missing": [],
    }


# -- scores --------------------------------------------------------------------------------------------------------


def scores(frames: dict[str, pd.DataFrame], values: dict[str, Any]) -> Page:
    """Returns the page of the saved scores of a task."""
    frame = frames["scores"]
    seeds = list(dict.fromkeys(frame["seed"]))
    facts = [("encoder", values["encoder"]), ("task", values["task"]), ("seeds", str(len(seeds)))]
    label = frame["language"].astype(str) + ", seed " + frame["seed"].astype(str)
    drawn = frame.assign(
        label=label, **{k: 100 * frame[k] for k in ("low", "high")}, value=100 * frame["accuracy"]
    )
    drawn = drawn.sort_values(
        "language", key=lambda names: names.map(_first(frame["language"])), kind="stable"
    )
    mean = frame.groupby("language", sort=False)["accuracy"].mean()
    said = f"Best: {mean.idxmax()}, {100 * mean.max():.1f}. Lowest: {mean.idxmin()}, {100 * mean.min():.1f}."
    rows = []
    for language, part in frame.groupby("language", sort=False):
        spread = f"{100 * part['accuracy'].std():.1f}" if len(part) > 1 else "–"
        numbers = [f"{100 * part['accuracy'].mean():.1f}", spread, f"{100 * part['macro_f1'].mean():.1f}"]
        counts = [f"{int(part['n'].max()):,}", *([str(int(part["lost"].max()))] if "lost" in part else [])]
        rows.append([visible(str(language)), *numbers, *counts])
    head = ["Language", "Accuracy", "sd", "Macro F1", "n", *(["Lost"] if "lost" in frame else [])]
    axes = forest(drawn, row(1, width=7.2, height=0.9 + 0.25 * len(drawn))[0], xlabel="accuracy, per cent")
    section = {
        "id": "scores",
        "title": "Accuracy by language",
        "text": "",
        "pictures": [_picture(axes, "scores", "Accuracy", visible(said))],
        "tables": [_table("Scores", head, rows, "Per cent; mean over seeds.")],
        "missing": ["sd: one seed has no spread"] if len(seeds) < 2 else [],
    }
    return facts, [section]


def _first(names: pd.Series) -> dict[Any, int]:
    return {name: i for i, name in enumerate(dict.fromkeys(names))}


# -- a training ----------------------------------------------------------------------------------------------------


def training(progress: dict[str, Any], retrieval: dict[str, Any] | None) -> Page:
    """Returns the page of a training.

    Args:
        progress: What its checkpoint says: training, losses, finished, watch.
        retrieval: before, after and n, where an alignment measured them.
    """
    losses, planned = [float(loss) for loss in progress["losses"]], progress["training"]["steps"]
    state = "finished" if progress["finished"] else "not finished"
    facts = [("steps", f"{len(losses):,} of {planned:,}"), ("state", state)]
    facts += [
        ("learning rate", f"{progress['training']['lr']:g}"),
        ("batch", str(progress["training"]["batch"])),
    ]
    frame = pd.DataFrame({"step": range(1, len(losses) + 1), "loss": losses})
    said = f"From {losses[0]:.3f} to {losses[-1]:.3f}; lowest {min(losses):.3f}."
    axes = xl_figures.loss_curve(frame)
    made = [_section("loss", "Loss", [_picture(axes, "loss", "Loss by step", said)], [])]
    if checks := (progress.get("watch") or {}).get("checks"):
        rows = [[str(i), f"{check:.4f}"] for i, check in enumerate(checks, 1)]
        caption = "The weights of the best check are kept."
        made.append(_section("checks", "Checks", [], [_table("Checks", ["Check", "Score"], rows, caption)]))
    if retrieval:
        made.insert(0, _section("retrieval", "Retrieval of held-out pairs", [], [_retrieval(retrieval)]))
    return facts, made


def _retrieval(found: dict[str, Any]) -> dict[str, Any]:
    n = int(found["n"])
    rows = []
    for name in ("before", "after"):
        low, high = wilson(round(found[name] * n), n)
        rows.append([name, f"{100 * found[name]:.1f}", f"{100 * low:.1f} – {100 * high:.1f}", str(n)])
    return _table("Retrieval", ["Alignment", "Retrieval, per cent", "95 % interval", "n"], rows)


# -- parts ---------------------------------------------------------------------------------------------------------


def _section(name: str, title: str, pictures: list[Any], tables: list[Any]) -> dict[str, Any]:
    return {"id": name, "title": title, "text": "", "pictures": pictures, "tables": tables, "missing": []}


def _table(label: str, head: list[str], rows: list[list[str]], caption: str = "") -> dict[str, Any]:
    return {"label": label, "head": head, "rows": rows, "caption": caption, "numeric": True}


def _picture(axes: Any, prefix: str, title: str, said: str) -> dict[str, Any]:
    svg = fragment(axes, prefix=prefix, title=title, description=said)
    return {"svg": Markup(svg), "said": said, "caption": title}


def _reasons(rows: pd.DataFrame, shown: dict[str, str]) -> list[str]:
    """The different reasons in the column `missing`, each once with the columns that it holds for.

    Args:
        rows: The rows of a table.
        shown: What the page calls the columns that it shows.
    """
    columns: dict[str, dict[str, None]] = {}
    texts: Iterable[str] = rows.get(COLUMN, ())
    for part in (part for text in texts if text for part in text.split("; ")):
        name, _, reason = part.partition(": ")
        if name in shown:
            columns.setdefault(reason, {})[shown[name]] = None
    return [visible(f"{', '.join(names)}: {reason}") for reason, names in columns.items()]


def _with_interval(row: Any, name: str) -> str:
    """The value, and its interval beneath it."""
    value, low, high = (float(row[key]) for key in (name, "low", "high"))
    if math.isnan(low):
        return _signed(value)
    interval = f"{_signed(low)} – {_signed(high)}"
    return Markup('<span class="value">{}</span> <span class="interval">{}</span>').format(
        _signed(value), interval
    )


def _signed(value: float, digits: int = 3) -> str:
    return "–" if math.isnan(value) else sections.number(float(value), digits)


def _plain(value: float, digits: int = 3) -> str:
    return "–" if math.isnan(value) else f"{value:.{digits}f}".replace("-", "−")


def _whole_number(value: float) -> str:
    return "∞" if math.isinf(value) else "–" if math.isnan(value) else f"{math.ceil(value):,}"
