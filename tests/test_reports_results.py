"""Result objects: round trips, refusals, and the intervals against their closed forms."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reports.errors import InputError, IntegrityError
from reports.intervals import bootstrap_mean, wilson
from reports.results import Result

Z = 1.959963984540054


@dataclasses.dataclass(frozen=True)
class Shape:
    n_layers: int
    names: tuple[str, ...]


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class Sample(Result):
    kind: ClassVar[str] = "sample"
    layers: pd.DataFrame
    gap: float
    window: tuple[int, int] | None
    shape: Shape
    options: dict[str, Any]
    tokens: list[str]
    extra: pd.DataFrame | None = None
    provenance: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class Other(Result):
    kind: ClassVar[str] = "other"
    gap: float


def sample(**changes: Any) -> Sample:
    frame = pd.DataFrame(
        {"layer": [0, 1, 2], "score": [0.5, math.nan, -1.0], "token": [" a", "<b>", "\u202e"]}
    )
    fields: dict[str, Any] = {
        "layers": frame,
        "gap": math.nan,
        "window": (1, 2),
        "shape": Shape(3, ("x", "y")),
        "options": {"biases": "keep", "limits": [math.inf, 1.5, None]},
        "tokens": ["<script>", "🙂", "\u200b"],
        "provenance": {"seeds": {"edit": 0}},
    }
    return Sample(**(fields | changes))


def test_round_trip_keeps_types_values_and_nan(tmp_path: Path) -> None:
    before = sample()
    after = Sample.load(before.save(tmp_path / "a"))
    assert after.equals(before)
    assert math.isnan(after.gap)
    assert after.window == (1, 2)
    assert after.shape == Shape(3, ("x", "y"))
    assert after.options["limits"] == [math.inf, 1.5, None]
    assert after.provenance == {"seeds": {"edit": 0}}
    assert after.layers["score"].isna().tolist() == [False, True, False]
    assert after.layers.dtypes.equals(before.layers.dtypes)
    assert after.extra is None


@pytest.mark.parametrize(
    "change", [{"gap": 1.0}, {"window": None}, {"tokens": []}, {"layers": pd.DataFrame({"layer": [0]})}]
)
def test_equals_sees_each_difference(change: dict[str, Any]) -> None:
    assert not sample().equals(sample(**change))


def test_optional_frame_and_second_save(tmp_path: Path) -> None:
    sample(extra=pd.DataFrame({"x": [1]})).save(tmp_path / "a")
    assert (tmp_path / "a" / "extra.parquet").is_file()
    sample().save(tmp_path / "a")  # the same kind: replaced whole, nothing of the older one stays
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["layers.parquet", "result.json"]
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_the_json_is_strict(tmp_path: Path) -> None:
    def refuse(name: str) -> float:
        raise AssertionError(f"{name} is no JSON")

    text = (sample().save(tmp_path / "a") / "result.json").read_text(encoding="utf-8")
    record = json.loads(text, parse_constant=refuse)
    assert (record["kind"], record["schema_version"], record["frames"]["layers"]["rows"]) == ("sample", 1, 3)


def test_refuses_folders_of_others_and_leaves_them_alone(tmp_path: Path) -> None:
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(InputError, match=r"thesis\.txt"):
        sample().save(foreign)
    Other(1.0).save(tmp_path / "other")
    with pytest.raises(InputError, match="'other'"):
        sample().save(tmp_path / "other")
    (sample().save(tmp_path / "own") / "notes.md").write_text("mine", encoding="utf-8")
    with pytest.raises(InputError, match=r"notes\.md"):
        sample().save(tmp_path / "own")
    with pytest.raises(InputError, match="found the file"):
        sample().save(foreign / "thesis.txt")
    assert (foreign / "thesis.txt").read_text(encoding="utf-8") == "mine"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["foreign", "other", "own"]


@pytest.mark.parametrize("value", [np.zeros(2), {1: 2}, object(), {"$float": "nan"}])
def test_refuses_what_json_cannot_hold_before_writing(tmp_path: Path, value: object) -> None:
    with pytest.raises(InputError, match=r"Sample\.options"):
        sample(options={"x": value} if not isinstance(value, dict) else value).save(tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_a_mixed_column_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="layers"):
        sample(layers=pd.DataFrame({"case_id": pd.Series([1, "x"], dtype=object)})).save(tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_load_finds_damage(tmp_path: Path) -> None:
    folder = sample().save(tmp_path / "a")
    with pytest.raises(IntegrityError, match="expected kind 'other'"):
        Other.load(folder)
    with pytest.raises(InputError, match="no folder"):
        Sample.load(tmp_path / "nowhere")
    with pytest.raises(IntegrityError, match="no saved result"):
        Sample.load(tmp_path)
    pd.DataFrame({"layer": [9]}).to_parquet(folder / "layers.parquet")
    with pytest.raises(IntegrityError, match="sha256"):
        Sample.load(folder)
    (folder / "layers.parquet").unlink()
    with pytest.raises(IntegrityError, match=r"layers\.parquet"):
        Sample.load(folder)


@pytest.mark.parametrize(("key", "value"), [("schema_version", 2), ("values", {"gap": 1.0})])
def test_load_refuses_other_versions_and_fields(tmp_path: Path, key: str, value: object) -> None:
    path = sample().save(tmp_path / "a") / "result.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(record | {key: value}), encoding="utf-8")
    with pytest.raises(IntegrityError):
        Sample.load(tmp_path / "a")


def test_repr_is_short_and_html_is_escaped() -> None:
    shown = sample()
    assert "<3 rows × 3 columns>" in repr(shown)
    page = shown._repr_html_()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "\u202e" not in page
    assert "⟨U+202E⟩" in page


def test_a_cell_shows_the_summary_before_what_it_is_made_of() -> None:
    @dataclasses.dataclass(frozen=True, repr=False, eq=False)
    class Summed(Sample):
        def summary(self) -> pd.DataFrame:
            return pd.DataFrame({"metric": ["<b>Acc</b>"], "value": [0.123456]})

    before, after = sample()._repr_html_(), Summed(**vars(sample()))._repr_html_()
    assert "<details>" not in before
    seen, folded = after.split("<details>")
    assert "&lt;b&gt;Acc&lt;/b&gt;" in seen
    assert "0.1235" in seen
    assert "&lt;script&gt;" in folded


def test_to_frame_is_a_copy() -> None:
    result = sample()
    frame = result.to_frame()
    frame.loc[0, "score"] = 99.0
    assert result.layers.loc[0, "score"] == 0.5
    with pytest.raises(InputError, match="no frame"):
        Other(1.0).to_frame()


# intervals


def is_wilson(successes: int, n: int, interval: tuple[float, float]) -> bool:
    """Wilson's bounds are the two roots w of (p - w)² = z² w (1 - w) / n: a second way to say what they are."""
    p = successes / n
    a, b, c = 1 + Z * Z / n, -(2 * p + Z * Z / n), p * p
    roots = sorted(float(root.real) for root in np.roots([a, b, c]))
    return bool(np.allclose(interval, roots, atol=1e-7))


def test_wilson_at_the_edges_and_in_the_middle() -> None:
    assert wilson(0, 10) == pytest.approx((0.0, Z**2 / (10 + Z**2)), abs=1e-12)
    assert wilson(10, 10) == pytest.approx((10 / (10 + Z**2), 1.0), abs=1e-12)
    assert wilson(0, 10)[0] == 0.0
    assert wilson(10, 10)[1] == 1.0
    half = Z * math.sqrt(0.25 / 10 + Z**2 / 400) / (1 + Z**2 / 10)
    assert wilson(5, 10) == pytest.approx((0.5 - half, 0.5 + half), abs=1e-12)
    assert all(math.isnan(bound) for bound in wilson(0, 0))


@given(st.integers(1, 400), st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_wilson_solves_its_equation(n: int, share: float) -> None:
    successes = round(share * n)
    assert is_wilson(successes, n, wilson(successes, n))


def test_the_oracle_of_wilson_can_fail() -> None:
    half = Z * math.sqrt(0.3 * 0.7 / 10)
    assert not is_wilson(3, 10, (0.3 - half, 0.3 + half))  # Wald's interval
    assert not is_wilson(3, 10, wilson(3, 10, level=0.9))
    assert not is_wilson(3, 10, wilson(4, 10))


@pytest.mark.parametrize(
    ("successes", "n", "level"), [(11, 10, 0.95), (-1, 10, 0.95), (1, 10, 95), (1, 10, 0)]
)
def test_wilson_refuses(successes: int, n: int, level: float) -> None:
    with pytest.raises(InputError):
        wilson(successes, n, level)


def is_normal_interval(values: np.ndarray, interval: tuple[float, float]) -> bool:
    """For many records the bootstrap of a mean is mean ± z s / sqrt(n), to a few per cent of its width."""
    half = Z * values.std() / math.sqrt(values.size)
    return bool(np.allclose(interval, (values.mean() - half, values.mean() + half), atol=0.12 * half))


def test_bootstrap_against_the_normal_limit() -> None:
    values = np.random.default_rng(3).normal(2.0, 1.5, size=500)
    assert is_normal_interval(values, bootstrap_mean(values))
    assert is_normal_interval(values, bootstrap_mean(values, seed=7))


def test_the_oracle_of_the_bootstrap_can_fail() -> None:
    values = np.random.default_rng(3).normal(2.0, 1.5, size=500)
    assert not is_normal_interval(values, bootstrap_mean(values, level=0.8))
    assert not is_normal_interval(values, bootstrap_mean(values[:250]))
    assert not is_normal_interval(values, tuple(np.quantile(values, [0.025, 0.975])))
    assert not is_normal_interval(values, bootstrap_mean(values + 0.1))


def test_bootstrap_is_deterministic_and_blind_to_order() -> None:
    values = np.random.default_rng(0).random(60)
    assert bootstrap_mean(values) == bootstrap_mean(values[::-1])
    assert bootstrap_mean(values) != bootstrap_mean(values, seed=1)
    assert bootstrap_mean(values) != bootstrap_mean(values, n_resamples=500)


def test_bootstrap_blocks_cover_all_resamples() -> None:
    values = np.random.default_rng(0).random(5000)  # 400 resamples a block
    assert is_normal_interval(values, bootstrap_mean(values))


def test_bootstrap_keeps_nan_and_refuses_nonsense() -> None:
    for values in ([], [1.0, math.nan]):
        assert all(math.isnan(bound) for bound in bootstrap_mean(values))
    assert bootstrap_mean([0.3]) == (0.3, 0.3)
    with pytest.raises(InputError, match="one dimension"):
        bootstrap_mean(np.zeros((2, 2)))
    with pytest.raises(InputError, match="n_resamples"):
        bootstrap_mean([1.0], n_resamples=0)
    with pytest.raises(InputError, match="level"):
        bootstrap_mean([1.0], level=95)
