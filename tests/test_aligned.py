"""`contrast(a, b, align=...)`: two attributions in which more than one thing differs, against the two results."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

import mechedit as me
from mechedit.attribution import Attribution, AttributionContrast
from mechedit.attribution.units import UNITS
from mechedit.models.hooked import load_model
from reports.errors import InputError
from tests.tiny import tiny_folder, tiny_model

PROMPTS = "Anna Keller works as a", "Tim Duncan works as a", "The Eiffel Tower is located in the city of"


def attributed(prompt: int, target: str = " teacher", arch: Any = "llama", **options: Any) -> Attribution:
    return me.attribute(tiny_model(arch), PROMPTS[prompt], target, top_k="all", **options)


def shift(attr: Attribution, by: float) -> Attribution:
    """The same result as of another model: its scores moved, so that what is compared can be told."""
    provenance = {
        **attr.provenance,
        "model": {**attr.provenance["model"], "name": "other", "hash": "ab" * 32},
    }
    return replace(attr, heads=attr.heads.assign(score=attr.heads["score"] + by), provenance=provenance)


def same_length() -> tuple[Attribution, Attribution]:
    """Two prompts of as many tokens, found among words of the tokenizer."""
    model = tiny_model("llama")
    prompts = [
        f"{name} works as a" for name in ("Anna Keller", "Tim Duncan", "Lily", "Berlin", "Rome", "Paris")
    ]
    lengths = [len(model.tokenize(prompt)) for prompt in prompts]
    i = next(i for i, n in enumerate(lengths) if lengths.count(n) > 1)
    j = lengths.index(lengths[i], i + 1)
    a, b = (me.attribute(model, prompts[k], " teacher", top_k="all") for k in (i, j))
    return a, b


def test_by_position_every_unit_stands_beside_the_one_at_its_place() -> None:
    a, b = same_length()
    with pytest.raises(InputError, match=r"data\.prompt"):
        a - b
    c = me.contrast(a, b, align="position")
    for unit in ("layers", "heads", "head_positions", "mlp_neurons", "attn_neurons"):
        keys = list(UNITS[unit])
        sides = [getattr(attr, unit).set_index(keys)["score"] for attr in (a, b)]
        frame = getattr(c, unit).set_index(keys)
        assert len(frame) == len(sides[0])
        expected = (sides[0] - sides[1]).reindex(frame.index)
        assert (frame["score"] - expected).abs().max() < 1e-12
    assert c.logp == pytest.approx(a.logp - b.logp)
    assert abs(c.completeness_gap) < 1e-3
    assert c.unknown == dict.fromkeys(c.unknown, 0)
    assert any("|" in token for token in c.tokens)


def test_by_units_prompts_of_any_length_are_compared() -> None:
    a, b = attributed(0), attributed(2, " Paris")
    assert len(a.ids) != len(b.ids)
    with pytest.raises(InputError, match=r"expected prompts of as many tokens, found .*; align='units'"):
        me.contrast(a, b, align="position")
    c = me.contrast(a, b, align="units")
    for unit in ("layers", "heads", "mlp_neurons"):
        keys = list(UNITS[unit])
        frame = getattr(c, unit)
        both = getattr(a, unit).merge(getattr(b, unit), on=keys, suffixes=("_a", "_b")).merge(frame, on=keys)
        assert len(both) == len(frame)
        assert (both["score_a"] - both["score_b"] - both["score"]).abs().max() < 1e-12
    assert c.head_positions.empty
    assert c.attn_neurons.empty
    assert abs(c.completeness_gap) < 1e-3


def test_the_title_says_what_is_compared(tmp_path: Any) -> None:
    a, b = attributed(0), attributed(2, " Paris")
    c = me.contrast(a, b, align="units")
    assert c.a.label == "'teacher' after 'Anna Keller works as a'"
    assert c.b.label.startswith("'Paris' after 'The Eiffel Tower")
    for said in (c.a.label, c.b.label):
        assert said.replace("'", "&#x27;") in c._repr_html_()
    assert "aligned by units" in c._repr_html_()
    models = me.contrast(a, shift(a, 1.0), align="units")
    assert "in llama " in models.a.label
    assert models.b.label.endswith("in other abababab")
    assert (models.heads["score"] + 1).abs().max() < 1e-12
    assert AttributionContrast.load(c.save(tmp_path / "c")).equals(c)
    assert (-c).aligned == "units"


def test_two_models_of_one_size_are_compared_and_of_two_are_refused() -> None:
    other = load_model(tiny_folder("llama-gqa"))
    a, b = attributed(0), me.attribute(other, PROMPTS[0], " teacher", top_k="all")
    c = me.contrast(a, b, align="position")
    assert c.logp == pytest.approx(a.logp - b.logp)
    fewer = replace(b, layers=b.layers[b.layers["layer"] < 2])
    with pytest.raises(InputError, match="models of one size, found 3 layers of 4 heads and 2 of 4"):
        me.contrast(a, fewer, align="position")


def test_what_cannot_be_compared_is_refused() -> None:
    a = attributed(0)
    cases: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
        ("align: expected 'position' or 'units'", (a, a), {}),
        ("align: expected one of position, units, found 'tokens'", (a, a), {"align": "tokens"}),
        ("sign: expected the same of both", (a, attributed(0, sign="suppress")), {"align": "units"}),
        ("two attributions and align", (a, PROMPTS[0]), {"align": "units"}),
        ("two attributions and align", (tiny_model("llama"), a), {"align": "units"}),
        ("two attributions and align", (a, a, " x"), {"align": "units"}),
        ("two attributions and align", (tiny_model("llama"), PROMPTS[0], " a"), {}),
        ("two attributions and align", (tiny_model("llama"), PROMPTS[0], " a", " b"), {"align": "units"}),
        ("intervals", (a, replace(a, certificate={**a.certificate, "exact": False})), {"align": "units"}),
    ]
    for says, arguments, options in cases:
        with pytest.raises(InputError, match=says):
            me.contrast(*arguments, **options)
