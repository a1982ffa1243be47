"""Two checkpoints of one model, as an edit by any tool leaves them: which weights differ, and what follows from it.

Steps:

1. the weights, one matrix at a time (`mechedit.anatomy.checkpoint_weights`): rank and norm of each difference;
2. of a fact, what both write behind its prompts, and the probability of its new and its old object;
3. behind the rewrite prompt the attribution of either object in both, unit by unit.

Beside the base model there is only ever one matrix in memory: for 2 and 3 the weights that differ are written into it,
and taken out again.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
from matplotlib.axes import Axes

from experiments.checkpoints import read_tokenizer
from experiments.progress import counted
from mechedit.anatomy.checkpoint_weights import StoredWeights, changed_weights, find_weights, under_weights
from mechedit.anatomy.edit_contrast import under_edit
from mechedit.attribution.options import Options
from mechedit.attribution.result import AttributionContrast
from mechedit.data.facts import FactEdit, facts_hash
from mechedit.models.hooked import HookedModel, load_model
from mechedit.models.scoring import score_pairs
from mechedit.models.weights import checkpoint_weights
from reports.errors import InputError
from reports.figures import layer_panels
from reports.results import Result

__all__ = ["CheckpointContrast", "contrast_checkpoints"]

OBJECTS = ("new", "old")
NEW_TOKENS = 12
_UNITS = {"layers": ("layer", "module"), "heads": ("layer", "head"), "mlp_neurons": ("layer", "neuron")}
_ANSWERS = ("role", "index", "prompt", "before", "after")
_CHANCES = ("p_new_before", "p_new_after", "p_old_before", "p_old_after")


@dataclass(frozen=True, repr=False, eq=False)
class CheckpointContrast(Result):
    """What differs between two checkpoints of one model, nats.

    Attributes:
        weights: One row for each weight that differs: weight, layer (−1: none), module, rows, columns, rank, norm,
            share, largest (`mechedit.anatomy.checkpoint_weights.changed_weights`).
        answers: One row a prompt of the fact: role, index, prompt, before and after (what the base and the edited model
            write), p_new_before, p_new_after, p_old_before, p_old_after.
        layers: Object ("new", "old"), layer, module, before, after, score (after − before), as are the next two.
        heads: Object, layer, head and the scores.
        mlp_neurons: Object, layer, neuron and the scores, of those that are among the best of either model.
        base: The base model's name.
        edited: The edited checkpoint.
        n_weights: Weights that were compared.
        target_new: Of the fact ("" without one), as is target_true.
        logp: log p of the new and the old object, before and after: new_before, new_after, old_before, old_after.
        notes: What a reader must know.
    """

    kind: ClassVar[str] = "checkpoint_contrast"

    weights: pd.DataFrame
    answers: pd.DataFrame
    layers: pd.DataFrame
    heads: pd.DataFrame
    mlp_neurons: pd.DataFrame
    base: str
    edited: str
    n_weights: int
    target_new: str = ""
    target_true: str = ""
    logp: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    provenance: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"CheckpointContrast({self.title()})"

    def title(self) -> str:
        """What differs, in a line."""
        n = len(self.weights)
        said = f"{self.edited} against {self.base}: {n} of {self.n_weights} weights differ"
        if not n:
            return said
        layers = sorted({int(layer) for layer in self.weights["layer"] if layer >= 0})
        where = (
            f" in layers {layers[0]} to {layers[-1]}"
            if len(layers) > 1
            else f" in layer {layers[0]}" * len(layers)
        )
        ranks = sorted({int(rank) for rank in self.weights["rank"]})
        norm = math.sqrt(float((self.weights["norm"] ** 2).sum()))
        return f"{said}{where}, of rank {' to '.join(map(str, dict.fromkeys((ranks[0], ranks[-1]))))}, norm {norm:.4g}"

    def plot(self, ax: Axes | None = None) -> Axes:
        """Layer scores of both objects, before and after; with `ax` those of attention alone.

        Raises:
            InputError: No fact was given, so that nothing was attributed.
        """
        frame = staged(self.layers)
        if frame.empty:
            raise InputError("fact: expected one for an attribution; this contrast is of the weights alone")
        return layer_panels(frame)[0]


def contrast_checkpoints(
    base: HookedModel | str | Path,
    edited: str | Path,
    fact: FactEdit | None = None,
    *,
    top_k: int = 300,
    neighbours: int = 3,
    device: str = "auto",
    dtype: str = "float32",
) -> CheckpointContrast:
    """Compare a checkpoint that any tool has edited with the model that it was made of.

    Args:
        base: The unedited model, or what `load_model` takes for it.
        edited: The folder of the edited checkpoint (`edit --save`, a merged LoRA, any fine-tuned model), or an id.
        fact: What was edited; None: the weights alone.
        top_k: Neurons of either model that are scored.
        neighbours: How many neighbourhood prompts both models answer.
        device: Of a base that is given by name.
        dtype: Likewise.

    Raises:
        InputError: The checkpoints are not of one model, or read the fact's prompts as other tokens.

    >>> import tempfile
    >>> import mechedit as me
    >>> model, fact = me.load_model("factworld"), me.factworld.edits(1)[0]
    >>> with tempfile.TemporaryDirectory() as folder, me.editors.ROME().apply(model, fact) as changed:
    ...     saved = changed.save_pretrained(folder + "/edited")
    ...     result = contrast_checkpoints("factworld", saved, fact, top_k=5)
    >>> result.weights[["layer", "rank"]].to_dict("records"), result.logp["new_after"] > result.logp["new_before"]
    ([{'layer': 0, 'rank': 1}], True)
    """
    model = base if isinstance(base, HookedModel) else load_model(base, device=device, dtype=dtype)
    stored = find_weights(model, edited)
    prompts = _prompts(fact, neighbours) if fact is not None else []
    notes = _notes(model, stored, fact, [prompt for _, _, prompt in prompts])
    weights = changed_weights(model, stored)
    change = Change(model, stored, tuple(weights["weight"]))
    shown = _unasked() if fact is None else _asked(change, fact, prompts, top_k)
    with change.applied() as changed:
        data = {
            "edited": stored.source,
            "edited_hash": changed.hash,
            "fact": facts_hash([fact] if fact else []),
        }
    return CheckpointContrast(
        weights=weights,
        base=model.name,
        edited=stored.folder.name,
        n_weights=sum(1 for _ in checkpoint_weights(model.hf)),
        notes=notes,
        provenance=model.provenance(data=data, seeds={}),
        **shown,
    )


def staged(frame: pd.DataFrame) -> pd.DataFrame:
    """Scores before and after as rows: the columns of the frame with stage ("before", "after") and score."""
    parts = [
        frame.drop(columns=["before", "after"]).assign(stage=stage, score=frame[stage])
        for stage in ("before", "after")
    ]
    return pd.concat(parts, ignore_index=True)


# --- pieces -----------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Change:
    """The weights of a checkpoint that differ from the model's."""

    model: HookedModel
    stored: StoredWeights
    names: tuple[str, ...]

    def applied(self) -> contextlib.AbstractContextManager[HookedModel]:
        """The model under them, for the length of a block."""
        return under_weights(self.model, self.stored, self.names)


def _unasked() -> dict[str, Any]:
    """The fields of a contrast that need a fact, empty."""
    columns = {unit: ["object", *keys, "before", "after", "score"] for unit, keys in _UNITS.items()}
    columns["answers"] = [*_ANSWERS, *_CHANCES]
    return {name: pd.DataFrame(columns=names) for name, names in columns.items()}


def _asked(
    change: Change, fact: FactEdit, prompts: Sequence[tuple[str, int, str]], top_k: int
) -> dict[str, Any]:
    """The fields of a contrast that need a fact."""
    sides = {
        name: _attributed(change, fact, name, top_k)
        for name in counted(OBJECTS, "attribution before and after", unit="object")
    }
    units = {unit: [_frame(sides[name], unit, name) for name in OBJECTS] for unit in _UNITS}
    logp = {f"{name}_before": side.b.logp for name, side in sides.items()}
    return {
        **{unit: pd.concat(frames, ignore_index=True) for unit, frames in units.items()},
        "answers": _answers(change, fact, prompts),
        "logp": logp | {f"{name}_after": side.a.logp for name, side in sides.items()},
        "target_new": fact.target_new,
        "target_true": fact.target_true,
    }


def _prompts(fact: FactEdit, neighbours: int) -> list[tuple[str, int, str]]:
    return [
        ("rewrite", 0, fact.rewrite_prompt),
        *(("paraphrase", i, prompt) for i, prompt in enumerate(fact.paraphrase_prompts)),
        *(("neighborhood", i, prompt) for i, prompt in enumerate(fact.neighborhood_prompts[:neighbours])),
    ]


def _notes(
    model: HookedModel, stored: StoredWeights, fact: FactEdit | None, prompts: Sequence[str]
) -> tuple[str, ...]:
    """What a reader must know.

    Raises:
        InputError: The checkpoint's tokenizer reads the fact otherwise than the model's.
    """
    name, notes = stored.folder.name, []
    if not any(
        (stored.folder / file).is_file() for file in ("tokenizer.json", "tokenizer.model", "vocab.json")
    ):
        notes.append(f"{name} has no tokenizer; that of {model.name} is used")
    elif fact is not None:
        tokenizer = read_tokenizer(stored.folder, argument="edited")
        for text in (*prompts, f" {fact.target_new}", f" {fact.target_true}"):
            here, there = (list(reader(text).input_ids) for reader in (model.tokenizer, tokenizer))
            if here != there:
                raise InputError(
                    f"edited: its tokenizer reads {text!r} as {there[:8]}, that of {model.name} as {here[:8]}"
                )
    if stored.left_out:
        notes.append(f"no weights of the model, left out: {', '.join(stored.left_out[:3])}")
    if model.dtype.itemsize > 2 and (half := stored.dtypes & {"BF16", "F16"}):
        notes.append(
            f"{name} is stored in {', '.join(sorted(half))}: what rounding explains counts as the same"
        )
    return tuple(notes)


def _answers(change: Change, fact: FactEdit, prompts: Sequence[tuple[str, int, str]]) -> pd.DataFrame:
    """What both write and how likely the objects are to them, a row a prompt."""
    texts = [prompt for _, _, prompt in prompts]
    pairs = [
        change.model.continuation(text, value, space=fact.space)
        for text in texts
        for value in (fact.target_new, fact.target_true)
    ]
    said: dict[str, list[str]] = {}
    chances: dict[str, list[float]] = {}
    for stage, place in (
        ("before", contextlib.nullcontext(change.model)),
        ("after", change.applied()),
    ):
        with place as asked:
            said[stage] = asked.generate(texts, max_new_tokens=NEW_TOKENS)
            chances[stage] = [math.exp(float(scored.logps.sum())) for scored in score_pairs(asked, pairs)]
    rows = [
        (*prompt, said["before"][i], said["after"][i], *(chances[s][2 * i + k] for k in (0, 1) for s in said))
        for i, prompt in enumerate(prompts)
    ]
    return pd.DataFrame(rows, columns=[*_ANSWERS, *_CHANCES])


def _attributed(change: Change, fact: FactEdit, name: str, top_k: int) -> AttributionContrast:
    """The attribution of the new or the old object behind the rewrite prompt: edited less base."""
    return under_edit(
        change.model,
        change.applied(),
        fact.rewrite_prompt,
        fact.target_new if name == "new" else fact.target_true,
        label=change.stored.folder.name,
        options=Options(top_k=top_k),
        space=fact.space,
    )


def _frame(contrast: AttributionContrast, unit: str, name: str) -> pd.DataFrame:
    frame: pd.DataFrame = getattr(contrast, unit)
    ordered = frame.rename(columns={"a": "after", "b": "before"}).assign(object=name)
    return ordered[["object", *_UNITS[unit], "before", "after", "score"]]
