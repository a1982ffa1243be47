"""Strict TOML: what is not known is refused by name, what is known comes back equal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.config import checked, dump, held, load
from reports.errors import InputError


@dataclass(frozen=True)
class Window:
    low: int = 0
    high: int = 3


@dataclass(frozen=True)
class Recipe:
    name: str
    rate: float = 0.5
    steps: int = 20
    gated: bool = True
    site: Literal["attn_out", "mlp_out"] = "attn_out"
    window: Window | None = None
    layers: tuple[int, int] | Literal["auto"] = "auto"
    seeds: tuple[int, ...] = (0,)
    tags: list[str] = field(default_factory=list)
    factors: dict[str, float] = field(default_factory=dict)
    out: Path = Path("runs/x")


def write(folder: Path, text: str) -> Path:
    file = folder / "recipe.toml"
    file.write_text(text, encoding="utf-8")
    return file


def test_every_kind_of_field_round_trips(tmp_path: Path) -> None:
    recipe = Recipe(
        "mega 'x' \"y\"\n",
        rate=1e-7,
        gated=False,
        site="mlp_out",
        window=Window(2, 5),
        layers=(5, 7),
        seeds=(1, 2, 3),
        tags=["a", "b"],
        factors={"kl": 0.0625},
        out=Path("runs/demo"),
    )
    assert load(write(tmp_path, dump(recipe)), Recipe) == recipe
    assert load(write(tmp_path, dump(Recipe("only the required key"))), Recipe) == Recipe(
        "only the required key"
    )


@settings(max_examples=60, deadline=None)
@given(
    name=st.text(st.characters(codec="utf-8"), max_size=20),
    rate=st.floats(allow_nan=False),
    steps=st.integers(-(2**62), 2**62),
    tags=st.lists(st.text(st.characters(codec="utf-8"), max_size=8), max_size=4),
)
def test_any_value_round_trips(
    tmp_path_factory: pytest.TempPathFactory, name: str, rate: float, steps: int, tags: list[str]
) -> None:
    recipe = Recipe(name, rate=rate, steps=steps, tags=tags)
    assert load(write(tmp_path_factory.mktemp("any"), dump(recipe)), Recipe) == recipe


def test_an_integer_is_a_float_and_stays_one(tmp_path: Path) -> None:
    rate = load(write(tmp_path, 'name = "x"\nrate = 1\n'), Recipe).rate
    assert rate == 1.0
    assert type(rate) is float


def test_nan_and_infinity_pass(tmp_path: Path) -> None:
    assert math.isnan(load(write(tmp_path, dump(Recipe("x", rate=math.nan))), Recipe).rate)
    assert load(write(tmp_path, dump(Recipe("x", rate=-math.inf))), Recipe).rate == -math.inf


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('name = "x"\nstep = 3', "unknown key 'step'; did you mean 'steps'?"),
        ('name = "x"\nzzz = 3', "unknown key 'zzz'; valid: name, rate"),
        ('name = "x"\n[window]\nhihg = 3', "unknown key 'window.hihg'; did you mean 'window.high'?"),
        ("rate = 0.5", "key 'name' is missing"),
        ("name = 3", "name: expected str, found int 3"),
        ('name = "x"\nsteps = 2.0', "steps: expected int, found float 2.0"),
        ('name = "x"\nsteps = true', "steps: expected int, found bool True"),
        ('name = "x"\nrate = true', "rate: expected float, found bool True"),
        ('name = "x"\nrate = "fast"', "rate: expected float, found str 'fast'"),
        ('name = "x"\ngated = 1', "gated: expected bool, found int 1"),
        ('name = "x"\nsite = "mlp"', "site: expected one of 'attn_out', 'mlp_out', found str 'mlp'"),
        ('name = "x"\nlayers = "best"', "layers: expected tuple[int, int] or "),
        ('name = "x"\nlayers = [1, 2, 3]', "layers: expected tuple[int, int] or "),
        ('name = "x"\nseeds = [1, "2"]', "seeds[1]: expected int, found str '2'"),
        ('name = "x"\nseeds = 1', "seeds: expected an array, found int 1"),
        ('name = "x"\nwindow = 3', "window: expected a table, found int 3"),
        ('name = "x"\nfactors = { kl = "much" }', "factors.kl: expected float, found str 'much'"),
        ('name = "x"\nname = "y"', "not valid TOML"),
        ("name = ", "not valid TOML"),
    ],
)
def test_a_bad_file_is_refused_in_one_line_that_names_file_and_key(
    tmp_path: Path, text: str, says: str
) -> None:
    file = write(tmp_path, text)
    with pytest.raises(InputError) as caught:
        load(file, Recipe)
    assert str(caught.value).startswith(f"{file}: ")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_or_binary_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="found none"):
        load(tmp_path / "absent.toml", Recipe)
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="UTF-8"):
        load(tmp_path / "bytes.toml", Recipe)


def test_the_values_are_checked_by_the_dataclass_and_the_file_is_named(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Checked:
        rate: float

        def __post_init__(self) -> None:
            if self.rate <= 0:
                raise InputError(f"rate: expected more than 0, found {self.rate}")

    file = write(tmp_path, "rate = -1.0")
    with pytest.raises(InputError, match="rate: expected more than 0") as caught:
        load(file, Checked)
    assert str(file) in str(caught.value)


def test_dump_refuses_what_toml_cannot_say() -> None:
    @dataclass(frozen=True)
    class Holds:
        value: object = 3

    with pytest.raises(InputError, match="value: TOML cannot say None"):
        dump(Holds(None))
    with pytest.raises(InputError, match="value: expected something that TOML can hold, found bytes"):
        dump(Holds(b"x"))
    with pytest.raises(InputError, match="dataclass instance"):
        dump({"a": 1})


def test_tables_with_numbers_for_keys_and_sequences_are_read() -> None:
    hint = Mapping[int, Sequence[str]]
    assert checked({"7": ["a", "b"]}, hint, where="x") == {7: ("a", "b")}
    assert held({7: ("a", None)}) == {"7": ["a", "none"]}
    assert checked([1, "a"], Any, where="x") == [1, "a"]
    with pytest.raises(InputError, match="x: expected keys that are numbers, found str 'seven'"):
        checked({"seven": ["a"]}, hint, where="x")
    with pytest.raises(InputError, match=r"x\.7\[0\]: expected str, found int 1"):
        checked({"7": [1]}, hint, where="x")
