"""The main study on one model: attribute, find the window, edit, measure beside controls, report.

Steps, each of whose cases is a file in the run folder, so that a stopped run goes on:

1. Facts to edit, and others (about other subjects) to choose by: the evaluation never sees those. They are the embedded
   world's for an embedded model, and those of the atlas that it knows for any other.
2. The window, from statements in context that succeed against those that fail (`mechedit.anatomy`); gate layer and
   threshold from the paraphrases and neighbours of the same facts.
3. Every fact is attributed for its new and its old object before and after the edit (NLKA layer and head scores).
4. Every editor is evaluated on the same facts: MEGA; MEGA without its gate; the mean shift at the same layers; the gate
   alone; as many layers at random and the first ones; no edit.
5. Tables and frames for the page, which `reports` draws from the files alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.cases import every_case
from experiments.recipe import recorded
from experiments.runs import RunFolder
from mechedit.anatomy import StatementContrast, layer_scores, statement_contrast
from mechedit.attribution import Attribution, attribute, head_attention
from mechedit.data.case_keys import attribution_key
from mechedit.data.facts import FactEdit, facts_hash
from mechedit.editors import MEGA, Editor, NoEdit
from mechedit.editors.steering.variants import CONTROLS, variant
from mechedit.evaluation.evaluate import Evaluation, baseline, evaluate
from mechedit.models.embedded import EMBEDDED
from mechedit.models.hooked import HookedModel
from mechedit.recipes.configurations import DemoConfig
from mechedit.recipes.splits import demo_facts
from reports import page
from reports.answers import NOT_SHOWN, above, answer
from reports.intervals import bootstrap_mean
from reports.text import visible

__all__ = ["controls", "run_demo"]

AXES = {"acc": "Acc", "gen": "Gen", "spec": "Spec"}
LABELS = {"mega": "MEGA", **{name: label for name, (label, _) in CONTROLS.items()}, "no_edit": "No edit"}


def controls(mega: MEGA, *, n_layers: int, seed: int) -> list[Editor]:
    """MEGA and what it is held against, in the order of the table (`mechedit.editors.steering.variants`)."""
    beside = [variant(mega, name, n_layers=n_layers, seed=seed) for name in CONTROLS]
    return [mega, *beside, NoEdit()]


def run_demo(
    model: HookedModel, config: DemoConfig, out: str | Path, *, progress: bool = True
) -> dict[str, Any]:
    """Runs the study into the folder `out`, or goes on with it.

    Returns:
        The summary that the page shows.

    Raises:
        InputError: `out` holds something else or a run with another configuration.
    """
    facts, selection, source = demo_facts(model, config, progress=progress)
    seeds = {"facts": config.seed, "selection": config.seed + 1}
    facts_of = {
        "source": source,
        "facts": facts_hash(facts),
        "selection": facts_hash(selection),
    }
    run = RunFolder.open(
        out, recorded("demo", config), provenance=model.provenance(data=facts_of, seeds=seeds)
    )
    contrast = statement_contrast(model, selection)
    run.write_result(contrast, "statement_contrast")
    mega = MEGA().select(model, selection, contrast=contrast)
    editors = controls(mega, n_layers=model.shape.n_layers, seed=config.seed)
    _attribute_all(model, mega, facts, run, progress=progress)
    unedited = baseline(model, facts)
    evaluations = {
        editor.name: evaluate(model, editor, facts, progress=progress, run=run, unedited=unedited)
        for editor in editors
    }
    for name, evaluation in evaluations.items():
        run.write_result(evaluation, name)
    summary = _summary(model, config, contrast, mega, evaluations, source)
    _write_page_data(model, mega, facts, run, contrast, summary)
    page.build(run.path)
    run.finish(summary)
    return summary


# -- attribution ---------------------------------------------------------------------------------------------


def _attribute_all(
    model: HookedModel, mega: MEGA, facts: Sequence[FactEdit], run: RunFolder, *, progress: bool
) -> None:
    """One case a fact: layer and head scores for both objects, before and after the edit."""

    def make(i: int) -> dict[str, Any]:
        rows = _score_rows(model, facts[i], "before")
        with mega.apply(model, facts[i]) as edited:
            rows += _score_rows(edited, facts[i], "after")
        return {"rows": rows}

    keys = [attribution_key(fact) for fact in facts]
    every_case(run, keys, make, label="attribution", progress=progress)


def _score_rows(model: HookedModel, fact: FactEdit, stage: str) -> list[dict[str, Any]]:
    both = layer_scores(model, fact.rewrite_prompt, [fact.target_new, fact.target_true])
    rows = []
    for name, scored in zip(("new", "old"), both, strict=True):
        rows.append(
            {
                "object": name,
                "stage": stage,
                "layers": scored.layers.to_dict("list"),
                "heads": scored.heads["score"].tolist(),
            }
        )
    return rows


def _gathered(run: RunFolder, facts: Sequence[FactEdit], n_heads: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Mean scores over the facts with bootstrap intervals, and mean head scores."""
    layers, heads = [], []
    for fact in facts:
        for row in run.read_case(attribution_key(fact))["rows"]:
            keys = {"object": row["object"], "stage": row["stage"]}
            layers.append(pd.DataFrame(row["layers"]).assign(**keys))
            index = range(len(row["heads"]))
            heads.append(
                pd.DataFrame(
                    {
                        "layer": [i // n_heads for i in index],
                        "head": [i % n_heads for i in index],
                        "score": row["heads"],
                    }
                ).assign(**keys)
            )
    groups = pd.concat(layers).groupby(["module", "object", "stage", "layer"], sort=True)["score"]
    means = groups.agg(
        score="mean", n="size", low=lambda s: bootstrap_mean(s)[0], high=lambda s: bootstrap_mean(s)[1]
    )
    all_heads = pd.concat(heads)
    new = all_heads[all_heads["object"] == "new"]
    mean_heads = new.groupby(["object", "stage", "layer", "head"], sort=False)["score"].mean()
    return means.reset_index(), mean_heads.reset_index()


# -- tables --------------------------------------------------------------------------------------------------


def _summary(
    model: HookedModel,
    config: DemoConfig,
    contrast: StatementContrast,
    mega: MEGA,
    evaluations: dict[str, Evaluation],
    source: str,
) -> dict[str, Any]:
    rows = [_editor_row(name, evaluation) for name, evaluation in evaluations.items()]
    first, last = mega.layers(model)
    known, total = evaluations["mega"].n_known, evaluations["mega"].n_total
    invented = ["The persons are invented: nothing here says what holds in a model of natural text."]
    return {
        "title": "Where a fact is recalled, and how MEGA changes it",
        "subtitle": f"{total} counterfactual edits of {source}, one at a time",
        "model": f"{config.model} ({model.shape.architecture}, {model.shape.n_layers} layers)",
        "n": known,
        "window": [first, last],
        "editors": rows,
        "notes": [
            f"The unedited model knows {known} of the {total} facts; scores are over those.",
            f"Window (layers {first} to {last}; the contrast names {contrast.window[0]} to {contrast.window[1]}), "
            f"targets ({mega.target}), rank, gate layer {mega.gate_layer} and threshold {mega.threshold:.3g} were "
            f"chosen on {config.selection} facts about other subjects: {contrast.n_success} statements in context that "
            f"succeeded against {contrast.n_failure} that failed. Alpha: each edit as far as its own prompts need.",
            "Acc, Gen, Spec are SAKE's argmax family; ES, PS, NS, S are ROME's probability family: not comparable.",
            "Spec counts a closed gate as success: read the row without a gate beside it.",
        ],
        "verdicts": _verdicts(contrast, rows),
        "not_done": [
            *(invented if config.model in EMBEDDED else []),
            "The edit contrasted for the window is a statement in context; weight editors are not compared here.",
            "Head and neuron scores are static: each unit is added alone under a frozen norm; ablate them to know.",
        ],
    }


def _editor_row(name: str, evaluation: Evaluation) -> dict[str, Any]:
    table = evaluation.summary().set_index("metric")
    row: dict[str, Any] = {"name": name, "label": LABELS[name]}
    for key, metric in {**AXES, "es": "ES", "ps": "PS", "ns": "NS", "s": "S"}.items():
        cell = table.loc[metric]
        row[key] = {
            "value": float(cell["value"]),
            "low": float(cell["low"]),
            "high": float(cell["high"]),
            "n": int(cell["n"]),
        }
    row["mean"] = _mean_of_axes(evaluation)
    return row


def _mean_of_axes(evaluation: Evaluation) -> dict[str, Any]:
    """Mean of Acc, Gen and Spec, with a bootstrap over the records that have all three."""
    records = evaluation.records[evaluation.records["known"]]
    wide = records.pivot(index="case_id", columns="metric", values="value")[list(AXES.values())].dropna()
    means = wide.mean(axis=1).to_numpy()
    low, high = bootstrap_mean(means)
    axes = evaluation.summary().set_index("metric").loc[list(AXES.values()), "value"]
    return {"value": float(axes.mean()), "low": low, "high": high, "n": len(means)}


def _verdicts(contrast: StatementContrast, rows: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """What the run says to the paper's claims: an answer only where the interval allows one."""
    by_name = {row["name"]: row for row in rows}
    first, last = contrast.window
    attn = contrast.layers[contrast.layers["module"] == "attn"]
    inside = attn[attn["layer"].between(first, last)]
    promoted = answer(*zip(inside["low"], inside["high"], strict=True))
    if first < attn["layer"].max() / 3:  # whatever these layers do, mid-to-late ones they are not
        promoted = NOT_SHOWN
    mega, drawn, shift = (by_name[name]["mean"] for name in ("mega", "random_window", "mean_shift"))
    steered, random, shifted = ((cell["low"], cell["high"]) for cell in (mega, drawn, shift))
    return [
        {
            "claim": "Mid-to-late attention promotes the new object where an edit succeeds",
            "answer": promoted,
            "evidence": f"layers {first} to {last}: {inside['difference'].sum():+.2f} nats more than in failures; "
            f"all other layers {attn['difference'].sum() - inside['difference'].sum():+.2f}",
        },
        {
            "claim": "Steering the aligned layers edits; other layers do not",
            "answer": above(steered, random),
            "evidence": f"mean of Acc, Gen, Spec {mega['value']:.2f} against {drawn['value']:.2f} at random layers",
        },
        {
            "claim": "The transport does more than the mean shift",
            "answer": above(steered, shifted),
            "evidence": f"{mega['value']:.2f} [{mega['low']:.2f}, {mega['high']:.2f}] against "
            f"{shift['value']:.2f} [{shift['low']:.2f}, {shift['high']:.2f}]",
        },
    ]


# -- files for the page --------------------------------------------------------------------------------------


def _write_page_data(
    model: HookedModel,
    mega: MEGA,
    facts: Sequence[FactEdit],
    run: RunFolder,
    contrast: StatementContrast,
    summary: dict[str, Any],
) -> None:
    """The frames and graphs that `reports.page` reads; the circuit and the neurons are of one edited fact."""
    layers, heads = _gathered(run, facts, model.shape.n_heads)
    run.write_frame("contrast", layers)
    run.write_frame("heads", heads)
    run.write_frame("window", contrast.windows())
    fact = facts[0]
    with mega.apply(model, fact) as edited:
        attr = attribute(edited, fact.rewrite_prompt, fact.target_new, top_k=50)
        seen = head_attention(edited, attr)
    run.write_frame("neurons", _neuron_table(attr))
    run.write_json("circuit", attr.circuit())
    run.write_frame("attention", seen.patterns)
    run.write_frame("token_heat", seen.heat)
    run.write_json("summary", summary)


def _neuron_table(attr: Attribution, rows: int = 20) -> pd.DataFrame:
    """The top FFN neurons as the page shows them: layer, module, unit, score, promotes, demotes."""
    marked = attr.promotes.assign(token=[visible(token, spaces=True) for token in attr.promotes["token"]])
    tokens = marked.groupby(["layer", "neuron", "side"], sort=False)["token"].agg(" ".join).unstack("side")
    top = attr.top(rows).join(tokens, on=["layer", "neuron"])
    unit = [f"L{layer}.{neuron}" for layer, neuron in zip(top["layer"], top["neuron"], strict=True)]
    return top.assign(module="mlp", unit=unit)[["layer", "module", "unit", "score", "promotes", "demotes"]]
