"""Where the heads look, on a page: the files are checked, the numbers kept, and no token becomes markup."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from reports import attention, html, markdown
from reports.errors import IntegrityError
from reports.page import build, render
from reports.text import clip, visible
from tests import reports_example as example
from tests.test_reports_page import Outline, minimal

TOKENS: list[str] = example.circuit()["tokens"]
Damage = Callable[[pd.DataFrame], pd.DataFrame]


def run_with(folder: Path, *, tokens: list[str] | None = None, **frames: pd.DataFrame | None) -> Path:
    """A small run with a circuit and the frames of the example, or others; None leaves a file out."""
    names = TOKENS if tokens is None else tokens
    minimal(folder)
    graph = example.circuit(3) | {"tokens": names}
    (folder / "circuit.json").write_text(json.dumps(graph), encoding="utf-8")
    for name, frame in (example.looks(len(names)) | frames).items():
        if frame is not None:
            frame.to_parquet(folder / f"{name}.parquet")
    return folder


def section(text: str) -> str:
    (found,) = re.findall(r'<section aria-labelledby="attention">.*?</section>', text, re.DOTALL)
    return str(found)


def data(text: str) -> dict[str, Any]:
    (found,) = re.findall(r'<script type="application/json" id="attention-data">(.*?)</script>', text)
    return dict(json.loads(found))


def rows(text: str) -> list[list[str]]:
    body = re.findall(r"<tr.*?</tr>", section(text), re.DOTALL)[1:]
    return [re.findall(r"<td[^>]*>([+−\d.]+)", row) for row in body]


def value(text: str) -> float:
    return float(text.replace("−", "-"))


# --------------------------------------------------------------------------------------------- what it shows


def test_the_table_and_the_data_hold_the_numbers_of_the_files(tmp_path: Path) -> None:
    text = render(run_with(tmp_path / "run"))
    frames = example.looks()
    table = rows(text)
    for i, (layer, head) in enumerate([(6, 0), (3, 5), (7, 2)]):
        mine = f"layer == {layer} and head == {head}"
        own = frames["token_heat"].query(mine)["score"].to_numpy()
        assert [value(row[1 + i]) for row in table[:-1]] == pytest.approx(own.round(3).tolist(), abs=1e-9)
        assert value(table[-1][1 + i]) == pytest.approx(own.sum(), abs=6e-4)
        whole = frames["attention"].query(mine)
        expected = whole.pivot(index="query", columns="key", values="weight").to_numpy()
        assert np.allclose(data(text)["patterns"][i], expected, atol=6e-4)
    every = frames["token_heat"].groupby("pos")["score"].sum()
    assert [value(row[0]) for row in table[:-1]] == pytest.approx(every.tolist(), abs=6e-4)
    assert data(text)["tokens"] == [visible(token, spaces=True) for token in TOKENS]
    assert data(text)["heads"] == ["L6 H0", "L3 H5", "L7 H2"]
    last = frames["attention"].query("query == 8 and layer == 3")["weight"].tolist()
    assert [f"{w:.2f}" for w in last] == re.findall(r'class="n">(\d\.\d\d)<', section(text))[1::3]


def test_of_a_long_prompt_the_last_tokens_are_shown_and_the_sums_hold(tmp_path: Path) -> None:
    tokens = [f" t{i}" for i in range(attention.MAX_TOKENS + 20)]
    text = render(run_with(tmp_path / "run", tokens=tokens))
    table = rows(text)
    assert "20 tokens before" in section(text)
    assert "The last 48 of 68 tokens, counted from 0 again." in section(text)
    assert len(table) == attention.MAX_TOKENS + 2
    for column in range(4):
        assert sum(value(row[column]) for row in table[:-1]) == pytest.approx(
            value(table[-1][column]), abs=0.03
        )
    assert len(data(text)["tokens"]) == len(data(text)["patterns"][0]) == attention.MAX_TOKENS


def test_the_same_files_give_the_same_bytes_and_one_copy_of_the_library(tmp_path: Path) -> None:
    run = run_with(tmp_path / "run")
    text = render(run)
    assert render(run) == text
    library, _ = html._script("circuitsvis.js")
    assert len(library) > 1_000_000
    assert text.count(library) == 1
    assert text.count("var CircuitsVis=") == 1
    assert "sourceMappingURL" not in text
    assert len(text.encode()) < 3_000_000
    assert html._script("circuitsvis.js") is html._script("circuitsvis.js")  # read and hashed once


def test_nothing_in_the_library_ends_its_script() -> None:
    library, _ = html._script("circuitsvis.js")
    assert "</script" not in library
    assert r'"<script><\/script>"' in library  # where it did; the same text to JavaScript
    assert "<!--" not in library
    assert library.startswith("/* circuitsvis 1.43.3\n\nMIT License\n\nCopyright (c) 2022 Alan Cooney")


def test_a_run_without_the_files_has_its_page_and_no_library(tmp_path: Path) -> None:
    empty = {name: frame.head(0) for name, frame in example.looks().items()}
    for name, frames in (("none", dict.fromkeys(empty)), ("empty", empty)):
        text = render(run_with(tmp_path / name, **frames))
        assert "var CircuitsVis" not in text
        assert 'aria-labelledby="attention"' not in text
        assert re.search(r"Not part of this run: [^<]*attention patterns", text)
        assert "cytoscape" in text


def test_no_token_is_markup(tmp_path: Path) -> None:
    tokens = [*example.HOSTILE, "</script>", "&amp;", "<!--", "\u200d", ""]
    text = render(run_with(tmp_path / "run", tokens=tokens))
    own = section(text)
    outline = Outline(own)
    assert outline.faults == []
    assert [tag for tag, _ in outline.tags if tag == "script"] == ["script"]  # the data
    assert not [name for _, attributes in outline.tags for name in attributes if name.startswith("on")]
    assert not re.search("[\u202e\u200b\u200d]", own)
    assert data(text)["tokens"] == [visible(token, spaces=True) for token in tokens]
    for token in tokens:
        assert clip(visible(token, spaces=True), 24) in "".join(outline.words)


def test_markdown_has_the_table_and_not_what_needs_a_script(tmp_path: Path) -> None:
    text, pictures = markdown.convert(render(run_with(tmp_path / "run")), folder="x")
    assert list(pictures) == ["circuit.svg"]  # the library's text holds an <svg> too
    assert "## Where its heads look" in text
    assert "| Token | all | L6 H0 | L3 H5 | L7 H2 |" in text
    assert re.search(r"^\| ·Darr 6 \| .\d\.\d{3} \| .\d\.\d{3} \d\.\d\d \|", text, re.M)
    assert "whole patterns" not in text
    assert "CircuitsVis" not in text


# ------------------------------------------------------------------------------------------------ what it refuses


def at(where: int, column: str, value: Any) -> Damage:
    def damage(frame: pd.DataFrame) -> pd.DataFrame:
        changed = frame.astype({column: object}) if isinstance(value, str) else frame.copy()
        changed.loc[where, column] = value
        return changed.astype({column: str}) if isinstance(value, str) else changed

    return damage


@pytest.mark.parametrize(
    ("name", "damage", "match"),
    [
        (
            "attention",
            lambda f: f.drop(columns="key"),
            "expected a column 'key', found layer, head, query, weight",
        ),
        ("token_heat", lambda f: f.drop(columns="score"), "expected a column 'score'"),
        ("attention", at(0, "weight", 1.5), "expected weights from 0 to 1, found 1.5"),
        ("attention", at(0, "weight", -0.1), "expected weights from 0 to 1, found -0.1"),
        ("attention", at(0, "weight", 0.5), "sum to 1, found 0.5"),
        ("attention", at(3, "weight", 0.004), "no weight on a later token, found 0.004"),
        ("attention", at(0, "weight", np.nan), "expected finite numbers in 'weight', found nan"),
        ("token_heat", at(4, "score", np.inf), "expected finite numbers in 'score', found inf"),
        ("attention", at(0, "weight", "x"), "expected finite numbers in 'weight', found nan"),
        ("attention", lambda f: f.iloc[:-1], "9 × 9 rows a head"),
        ("attention", lambda f: f[f["query"] < 8], "9 × 9 rows a head"),
        ("attention", at(1, "key", 0), "9 × 9 rows a head"),
        ("attention", at(1, "key", -1), "9 × 9 rows a head"),
        ("attention", at(1, "key", 9), "9 × 9 rows a head"),
        ("attention", lambda f: f.assign(query=f["query"] / 1), "expected integers"),
        ("attention", lambda f: f[f["layer"] != 3], "expected the heads of token_heat.parquet"),
        ("token_heat", lambda f: f[f["pos"] > 0], "9 rows a head, one for each pos"),
        ("attention", lambda f: None, "expected attention.parquet beside the other"),
        ("token_heat", lambda f: None, "expected token_heat.parquet beside the other"),
    ],
)
def test_damage_is_named_and_no_page_written(tmp_path: Path, name: str, damage: Damage, match: str) -> None:
    run = run_with(tmp_path / "run", **{name: damage(example.looks()[name])})
    with pytest.raises(IntegrityError, match=re.escape(match)) as caught:
        build(run)
    assert f"{name}.parquet" in str(caught.value)
    assert not list(run.glob("*.html"))


def test_tokens_of_another_length_and_a_missing_circuit_are_named(tmp_path: Path) -> None:
    run = run_with(tmp_path / "run", **example.looks(8))
    with pytest.raises(IntegrityError, match="of the circuit's 9 tokens"):
        build(run)
    other = run_with(tmp_path / "other")
    (other / "circuit.json").unlink()
    with pytest.raises(IntegrityError, match="of the circuit's 0 tokens"):
        build(other)


def test_what_bfloat16_rounds_is_no_damage(tmp_path: Path) -> None:
    frames = example.looks()
    frames["attention"]["weight"] = (frames["attention"]["weight"] * 1024).round() / 1024
    assert render(run_with(tmp_path / "run", **frames))
