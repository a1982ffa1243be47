"""One editor on the facts of a file, as a run: configuration, folder, summary."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from experiments.recipe import recorded
from experiments.runs import RunFolder
from mechedit.data.facts import facts_hash, load_facts
from mechedit.editors.steering.mega import GateKind
from mechedit.editors.steering.steer import Position
from mechedit.evaluation.evaluate import baseline, check_facts, evaluate
from mechedit.evaluation.ripple import check_tests, ripple
from mechedit.recipes.configured_model import load
from mechedit.recipes.editor_choice import chosen_editor, named_editor
from reports import page
from reports.codec import parse
from reports.errors import InputError

__all__ = []


MODES = {
    "single": "one at a time",
    "sequential": "one upon the other, scored when all are in",
    "batch": "all at once",
}


@dataclass(frozen=True)
class EvaluationConfig:
    """One editor on the facts of a file: the options of the command, as a recipe gives them."""

    data: str
    model: str = "factworld"
    editor: str = "mega"
    window: tuple[int, int] | Literal["auto"] | None = None
    gate: GateKind | None = None
    gate_model: str | None = None
    max_fpr: float | None = None
    site: Literal["attn_out", "resid_mid", "mlp_out", "resid_post"] | None = None
    heads: int | None = None
    position: Position | None = None
    limit: int | None = None
    skip_malformed: bool = False
    mode: Literal["single", "sequential", "batch"] = "single"
    families: tuple[str, ...] = ("probability", "argmax")
    references: str | None = None
    seed: int = 0
    device: str = "auto"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise InputError(f"limit: expected at least 1, found {self.limit}")


def run_evaluation(
    config: EvaluationConfig, out: str | Path | None, *, progress: bool = True
) -> tuple[Any, Any]:
    """The evaluation and the RippleEdits' evaluation (or None), in the folder `out` if there is one.

    Errors: `InputError`, before anything is written, for what cannot be evaluated, and as `mechedit.evaluate`.
    """
    facts = load_facts(config.data, limit=config.limit, skip_malformed=config.skip_malformed)
    families = tuple(name for name in config.families if name != "ripple") or ("argmax",)
    if "ripple" in config.families:
        check_tests(facts)
    model = load(config)
    check_facts(model, facts, families=families)
    references = _references(config)
    named_editor(config, model)  # refused before anything is measured or written
    unedited = baseline(model, facts)
    known = any(unedited.known)
    editor = chosen_editor(config, model, facts, data=config.data) if known else named_editor(config, model)
    source = {"source": config.data, "facts": facts_hash(facts)}
    facts_of = model.provenance(data=source, seeds={"selection": config.seed, "generation": config.seed})
    run = RunFolder.open(out, recorded("evaluate", config), provenance=facts_of) if out else None
    result = evaluate(
        model,
        editor,
        facts,
        families=families,
        mode=config.mode,
        references=references,
        seed=config.seed,
        progress=progress,
        run=run,
        unedited=unedited,
    )
    ripples = None
    if "ripple" in config.families:
        ripples = ripple(model, editor, facts, progress=progress, run=run)
    if run is not None:
        _write(run, config, result, ripples)
    return result, ripples


def _write(run: RunFolder, config: EvaluationConfig, result: Any, ripples: Any) -> None:
    run.write_result(result, "evaluation")
    if ripples is not None:
        run.write_result(ripples, "ripple")
    run.write_json("summary", _evaluation_summary(config, result, result.summary(), ripples))
    page.build(run.path)
    run.finish({"n_known": result.n_known, "n_total": result.n_total})


def _references(options: EvaluationConfig) -> dict[str, list[str]] | None:
    """The texts of --references: a JSON object, new object -> list of texts."""
    if options.references is None:
        return None
    try:
        found = parse(Path(options.references).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"references: expected a JSON file, found {options.references} ({error})") from error
    texts = found.values() if isinstance(found, dict) else [None]
    if not all(isinstance(own, list) and own and all(isinstance(text, str) for text in own) for own in texts):
        raise InputError(f"references: {options.references}: expected an object, new object -> list of texts")
    return dict(found)


def _evaluation_summary(
    options: EvaluationConfig, result: Any, table: pd.DataFrame, ripples: Any
) -> dict[str, Any]:
    """What the report reads: fractions as cells of its table, what has another unit or n as notes."""
    rows = table.to_dict("records")
    cells = {
        row["metric"].lower(): {k: row[k] for k in ("value", "low", "high", "n")}
        for row in rows
        if row["metric"] not in ("GE", "RS")
    }
    notes = [f"n known {result.n_known} of {result.n_total}", *result.notes]
    notes += [
        f"{row['metric']} of the generated texts: {row['value']:.3f}{' bits' if row['metric'] == 'GE' else ''} "
        f"[{row['low']:.3f}, {row['high']:.3f}], n {row['n']}"
        for row in rows
        if row["metric"] in ("GE", "RS")
    ]
    if ripples is not None:
        counted = ", ".join(f"{outcome} {n}" for outcome, n in ripples.outcomes().items())
        notes.append(f"RippleEdits, outcomes of the facts: {counted}")
        notes += [
            f"{'RippleEdits' if row['family'] == 'ripple' else 'RippleEdits, read as SAKE does'}, {row['metric']}: "
            f"{row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}], n {row['n']} facts, {row['n_tests']} tests"
            for row in ripples.summary().to_dict("records")
            if row["n_tests"]
        ]
    return {
        "title": f"{options.editor} on {options.model}",
        "subtitle": f"{result.n_total} edits from {Path(options.data).name}, {MODES[options.mode]}",
        "model": options.model,
        "n": result.n_known,
        "editors": [{"name": options.editor, "label": options.editor, **cells}],
        "notes": notes,
        "not_done": ["Controls (no edit, gate alone, mean shift, random layers) are not part of this run."],
    }
