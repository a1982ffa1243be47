"""The table of `docs/architectures.md`, made from what the tests of architectures say.

    .venv/bin/python -m pytest tests/test_architectures.py --junitxml runs/architectures.xml
    .venv/bin/python -m tests.architecture_table runs/architectures.xml docs/architectures.md

`make architectures` runs both. A cell is "yes" where every test of that column ran and passed for the family, "no"
where one failed, and "-" where none ran.
"""

from __future__ import annotations

import platform
import re
import sys
from importlib.metadata import version
from pathlib import Path
from xml.etree import ElementTree

from tests.architectures import FAMILIES

#: Column to the beginnings of the tests that it stands on.
COLUMNS = {
    "logits": ("test_logits_are_those", "test_the_diagnosis_passes"),
    "attribution": ("test_scores_are_the_naive_ones", "test_query_scores"),
    "certified": ("test_a_certified_ranking",),
    "ROME": ("test_rome_satisfies", "test_v_star"),
    "MEMIT": ("test_memits_goal",),
    "FT": ("test_ft_follows",),
    "LoRA": ("test_lora_finds",),
    "MEGA": ("test_mega_steers",),
    "serving": ("test_an_edit_is_served",),
}


INTRODUCTION = """# Architectures

Made by `make architectures` from the results of `tests/test_architectures.py`: tiny random models of each family, every
norm random, against oracles. Python {python}, {versions}. What each family needs, and what is refused at load, is in
[models.md](models.md).
"""
LEGEND = """
*logits*: equal to plain transformers', alone, padded and cached, in float32 and float64, and every check of `diagnose`
passes. *attribution*: every score is the naive one and the account closes. *certified*: the ranking is the exhaustive
one. *ROME*, *MEMIT*: their constraints hold. *FT*: follows autograd. *LoRA*: finds its modules, and what it writes
runs. *MEGA*: steers, is a term of the account, is undone. *serving*: plain transformers under the edit gives the
hooked model's logits.
"""


def results(report: Path) -> dict[tuple[str, str], list[bool]]:
    """(test, family) to whether each of its runs passed, of a JUnit file; skipped ones are left out."""
    found: dict[tuple[str, str], list[bool]] = {}
    for case in ElementTree.parse(report).iter("testcase"):  # a file of pytest's own
        name, _, inside = case.attrib["name"].partition("[")
        family = next(
            (f for f in sorted(FAMILIES, key=len, reverse=True) if _of(f, inside.rstrip("]"))), None
        )
        if family is not None and case.find("skipped") is None:
            passed = case.find("failure") is None and case.find("error") is None
            found.setdefault((name, family), []).append(passed)
    return found


def _of(family: str, parameters: str) -> bool:
    return re.search(rf"(^|-){re.escape(family)}(-|$)", parameters) is not None


def cell(found: dict[tuple[str, str], list[bool]], family: str, tests: tuple[str, ...]) -> str:
    """What the column says of the family.

    >>> cell({("test_a", "gpt2"): [True], ("test_b", "gpt2"): [False]}, "gpt2", ("test_a", "test_b"))
    'no'
    """
    mine = [ran for (name, of), ran in found.items() if of == family and name.startswith(tests)]
    runs = [passed for ran in mine for passed in ran]
    return "-" if not runs else "yes" if all(runs) else "no"


def table(found: dict[tuple[str, str], list[bool]]) -> str:
    """The page."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "transformer-lens"))
    rows = [
        "| " + " | ".join([family, *(cell(found, family, tests) for tests in COLUMNS.values())]) + " |"
        for family in FAMILIES
    ]
    head = "| family | " + " | ".join(COLUMNS) + " |"
    lines = "|" + "---|" * (len(COLUMNS) + 1)
    about = INTRODUCTION.format(python=platform.python_version(), versions=versions)
    return "\n".join([about, head, lines, *rows, LEGEND])


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(table(results(Path(sys.argv[1]))), "utf-8")
