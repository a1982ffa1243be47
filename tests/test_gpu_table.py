"""The GPU's table of docs/benchmarks.md: made of results, and as long as there are none it says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from reports.errors import InputError
from tests.benchmarks.gpu_table import BEGIN, END, FULL, UNMEASURED, page

FIGURES = ("attribution, top 300", "ROME, one edit")


def results(**changes: Any) -> dict[str, Any]:
    rows = [
        {"model": name, "dtype": dtype, "reading": reading, "value": 10.0 * i + j, "unit": "s"}
        for i, (name, dtype) in enumerate(FULL)
        for j, reading in enumerate(FIGURES)
    ]
    about = {"device": "NVIDIA H100", "torch": "2.13.0", "transformers": "5.23.0", "date": "2026-11-28"}
    return {"tiny": False, **about, "rows": rows, **changes}


def test_the_page_says_that_nothing_was_measured(root: Path) -> None:
    text = (root / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    assert page(text, None) == text
    assert UNMEASURED in text.partition(BEGIN)[2].partition(END)[0]


def test_a_gpus_figures_stand_in_the_table() -> None:
    made = page(f"before\n{BEGIN}\nold\n{END}\nbehind\n", results())
    assert made.startswith(f"before\n{BEGIN}\n")
    assert made.endswith(f"{END}\nbehind\n")
    assert "old" not in made
    assert "| ROME, one edit | 1 s | 11 s | 21 s | 31 s |" in made
    assert "device NVIDIA H100" in made
    assert page(made, results()) == made
    assert UNMEASURED not in made


@pytest.mark.parametrize("changes", [{"tiny": True}, {"device": "cpu"}])
def test_figures_of_no_gpu_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="expected those of a GPU"):
        page(f"{BEGIN}{END}", results(**changes))
    with pytest.raises(InputError, match="between which the table stands"):
        page("no place", None)
