"""What each recipe can be told, and its defaults. Nothing heavy is imported, so that a plan is made at once.

Names of editors, variants, sites and rankings are written out here; `tests/test_plans.py` holds them against the
registries that they name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mechedit.data.joining import Space
from mechedit.models.embedded import EMBEDDED
from reports.errors import InputError

__all__ = [
    "ABLATIONS",
    "COMPARED",
    "CONTROLS",
    "EDITORS",
    "MODES",
    "NAMES",
    "RANKINGS",
    "SELECTION",
    "SETTINGS",
    "AnatomyConfig",
    "ComparisonConfig",
    "DemoConfig",
    "EvaluationConfig",
    "FaithfulnessConfig",
    "GateKind",
    "Position",
    "Site",
]

GateKind = Literal["asked", "hidden", "cosine", "mahalanobis", "mean", "sentence", "always"]
Position = Literal["object", "prompt", "every"]
Site = Literal["attn_out", "resid_mid", "mlp_out", "resid_post"]

MODES = {
    "single": "one at a time",
    "sequential": "one upon the other, scored when all are in",
    "batch": "all at once",
}
#: Families of metrics that a comparison measures.
COMPARED = ("argmax", "probability", "doubt", "subject")
SELECTION = 20  # facts by which a window, a gate and the like are chosen, none of them measured
#: Fields of `EvaluationConfig`, and options of the command line, that are an editor's own.
SETTINGS = ("window", "alpha", "gate", "gate_model", "threshold", "max_fpr", "site", "heads", "position")
#: Of `mechedit.editors.registry`.
NAMES = ("ft", "ft_l", "lora", "rome", "memit", "alphaedit", "ike", "sake", "mega", "no_edit")
#: Of `mechedit.editors.steering.variants`.
CONTROLS = ("mega_ungated", "mean_shift", "gate_only", "random_window", "early_window")
ABLATIONS = (
    *("late_window", "all_layers", "one_layer", "site_resid_mid", "site_mlp_out", "site_resid_post"),
    *("target_avoid", "target_statement", "all_targets", "alpha_1"),
    *("rank_1", "rank_4", "rank_all", "alpha_half", "alpha_2", "reg_small"),
    *("prompts_1", "prompts_2", "prompts_50", "prompts_100", "source_forced", "source_both"),
    *(
        "independent",
        "prompt_end",
        "every_token",
        "undoubted_gate",
        "gate_subject",
        "gate_states",
        "gate_hidden",
        "gate_cosine",
        "gate_mahalanobis",
        "gate_mean",
        "heads_6",
    ),
)
#: Of `mechedit.faithfulness.rankings`; random sets are drawn, and no ranking.
RANKINGS = ("nlka", "dla", "attribution_patching", "activation")
#: Of the comparison, in the order of its table.
EDITORS = ("mega", *CONTROLS, "sake", "rome", "memit", "ft", "ft_l", "lora", "ike", "no_edit")


@dataclass(frozen=True)
class EvaluationConfig:
    """One editor on the facts of a file: the options of the command, as a recipe gives them.

    Attributes:
        set: Other fields of the editor, by name (`mechedit edit --editor NAME --fields` lists them).
        begun_with: The `limit` with which a run began that was extended later: what is chosen is chosen on the facts
            that are not measured under it, and these are never measured. The run itself writes it down.
    """

    data: str
    model: str = "factworld"
    editor: str = "mega"
    window: tuple[int, int] | Literal["auto"] | None = None
    alpha: int | float | Literal["auto"] | None = None
    gate: GateKind | None = None
    gate_model: str | None = None
    threshold: float | None = None
    max_fpr: float | None = None
    site: Site | None = None
    heads: int | None = None
    position: Position | None = None
    set: dict[str, Any] | None = None
    limit: int | None = None
    begun_with: int | None = None
    skip_malformed: bool = False
    space: Space | None = None
    mode: Literal["single", "sequential", "batch"] = "single"
    families: tuple[str, ...] = ("probability", "argmax", "doubt", "subject")
    references: str | None = None
    text: str | None = None
    seed: int = 0
    device: str = "auto"
    dtype: str = "float32"
    prefix: str | None = None
    chat: bool | None = None

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise InputError(f"limit: expected at least 1, found {self.limit}")

    @property
    def scored(self) -> tuple[str, ...]:
        """The families that score prompts: all but "ripple", and "argmax" where there is no other."""
        return tuple(name for name in self.families if name != "ripple") or ("argmax",)


@dataclass(frozen=True)
class ComparisonConfig:
    """MEGA beside other editors: `limit` facts a seed under each of `editors`, MEGA's `ablations` on fewer.

    Attributes:
        data: A file of facts, of which each seed measures the next `limit` and chooses on others behind them all; or ""
            for the embedded world's own (which also brings RippleEdits' tests), drawn by the seed.
        begun_with: As in `EvaluationConfig`, of each seed.
        set: Fields of the editors, by editor and name; MEGA's hold for its controls and ablations too.
        text: Running text for what an edit costs elsewhere (None: the project's own).
    """

    model: str = "factworld"
    editors: tuple[str, ...] = EDITORS
    ablations: tuple[str, ...] = ABLATIONS
    limit: int = 200
    selection: int = 20
    seeds: tuple[int, ...] = (0, 1, 2)
    ablation_facts: int = 40
    ripple_facts: int = 60
    begun_with: int | None = None
    set: dict[str, dict[str, Any]] | None = None
    data: str = ""
    text: str | None = None
    space: Space | None = None
    device: str = "auto"
    dtype: str = "float32"
    prefix: str | None = None
    chat: bool | None = None

    def __post_init__(self) -> None:
        for key, names, allowed in (
            ("editors", self.editors, (*NAMES, *CONTROLS)),
            ("ablations", self.ablations, ABLATIONS),
        ):
            if foreign := [name for name in names if name not in allowed]:
                raise InputError(f"{key}: expected some of {', '.join(allowed)}, found {foreign[0]!r}")
        if "mega" not in self.editors:
            raise InputError(
                "editors: expected mega among them: its controls and ablations are made of it, found none"
            )
        _check_set(self.set, self.editors)
        if min(self.limit, self.selection) < 1 or not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise InputError(
                "limit, selection, seeds: expected at least 1 of each, no seed twice, found "
                f"{self.limit}, {self.selection}, {self.seeds}"
            )


@dataclass(frozen=True)
class AnatomyConfig:
    """What an edit changes: `limit` facts are edited by each of `editors`, `selection` others choose.

    Attributes:
        top_k: Neurons of each kind that are contrasted.
        data: A file of facts, or "" for the embedded world's own.
        space: Whether a space stands before an answer of that file, where its rows do not say it.
        begun_with: As in `EvaluationConfig`.
        set: Fields of the editors, by editor and name.
    """

    model: str = "factworld"
    editors: tuple[str, ...] = ("ft", "rome", "memit", "ike", "sake", "mega")
    limit: int = 60
    selection: int = 20
    top_k: int = 20
    begun_with: int | None = None
    set: dict[str, dict[str, Any]] | None = None
    data: str = ""
    space: Space | None = None
    seed: int = 0
    device: str = "auto"
    dtype: str = "float32"
    prefix: str | None = None
    chat: bool | None = None

    def __post_init__(self) -> None:
        if min(self.limit, self.selection, self.top_k) < 1:
            raise InputError(
                "limit, selection, top_k: expected at least 1 of each, found "
                f"{self.limit}, {self.selection}, {self.top_k}"
            )
        _check_set(self.set, self.editors)


@dataclass(frozen=True)
class FaithfulnessConfig:
    """Whose neurons carry the answer: `limit` facts on each of `models`, the `ks` best of each method ablated.

    Attributes:
        models: Names, folders or ids, one study each.
        mean_over: Prompts of so many other facts are averaged, and ablated neurons set to that mean; 0: set to zero.
        data: A file of facts, or "" for the embedded world's own.
        space: Whether a space stands before an answer of that file, where its rows do not say it.
        begun_with: As in `EvaluationConfig`, of the facts whose prompts are averaged.
    """

    models: tuple[str, ...] = tuple(EMBEDDED)
    limit: int = 100
    ks: tuple[int, ...] = (1, 3, 10, 30, 100)
    draws: int = 5
    mean_over: int = 0
    begun_with: int | None = None
    data: str = ""
    space: Space | None = None
    seed: int = 0
    device: str = "auto"
    dtype: str = "float32"
    prefix: str | None = None
    chat: bool | None = None

    def __post_init__(self) -> None:
        if self.limit < 2 or self.mean_over < 0 or not self.models:
            raise InputError(
                "limit, mean_over, models: expected at least 2, 0 and one name, found "
                f"{self.limit}, {self.mean_over} and {list(self.models)}"
            )


@dataclass(frozen=True)
class DemoConfig:
    """The main study on the embedded world: `limit` facts are edited, `selection` others choose window and gate."""

    model: str = "factworld"
    limit: int = 40
    selection: int = 20
    seed: int = 0
    device: str = "auto"
    dtype: str = "float32"
    prefix: str | None = None
    chat: bool | None = None


def _check_set(fields: Mapping[str, Any] | None, editors: Sequence[str]) -> None:
    """Refuses fields of what is no editor of the run, or of what is made of another one."""
    for name in fields or ():
        if name in (*CONTROLS, *ABLATIONS):
            raise InputError(f"set: {name} is MEGA with one thing changed; set mega's fields")
        if name not in editors:
            raise InputError(
                f"set: expected fields of {', '.join(editors)}, as {editors[0]}.FIELD, found {name!r}"
            )
