"""The face: importing it costs nothing, every name is there whatever was imported first, tools can read it."""

from __future__ import annotations

import ast
import itertools
import subprocess
import sys
from pathlib import Path

import pytest

import xlprobe

HEAVY = ("torch", "transformers", "pandas", "matplotlib", "numpy")
ROOMS = {file.parent.name for file in Path(str(xlprobe.__file__)).parent.glob("*/__init__.py")} - {"cli"}
SAYS_WHAT_IS_LOADED = f"import sys; print([name for name in {HEAVY} if name in sys.modules])"
ACCESSES = (
    "import xlprobe.diagnose",
    "from xlprobe.diagnose import diagnose",
    "from xlprobe import diagnose",
    "import xlprobe; xlprobe.diagnose",
    "import importlib; importlib.import_module('xlprobe.diagnose')",
)


def python(code: str, root: Path, *, status: int = 0) -> str:
    out = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert out.returncode == status, out.stderr
    return out.stdout


def test_importing_the_face_loads_nothing_heavy(root: Path) -> None:
    code = f"import xlprobe; xlprobe.data, dir(xlprobe), xlprobe.__all__; {SAYS_WHAT_IS_LOADED}"
    assert python(code, root) == "[]\n"
    assert python(f"import xlprobe; xlprobe.align; {SAYS_WHAT_IS_LOADED}", root) != "[]\n"


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["--help"], 0),
        (["align", "--help"], 0),
        (["study", "--help"], 0),
        (["run", "--help"], 0),
        (["align"], 2),
    ],
)
def test_help_and_wrong_usage_need_no_torch(arguments: list[str], status: int, root: Path) -> None:
    code = (
        "import sys\nfrom xlprobe.cli import main\n"
        f"try:\n    status = main({arguments!r})\nexcept SystemExit as exit:\n    status = exit.code or 0\n"
        "assert not {'torch', 'transformers', 'matplotlib'} & set(sys.modules), sorted(sys.modules)\nsys.exit(status)"
    )
    python(code, root, status=status)


def test_every_order_of_import_gives_the_function(root: Path) -> None:
    """In forked children of one interpreter that knows torch already: in each, the package is imported anew."""
    orders = [*ACCESSES, *map("\n".join, itertools.permutations(ACCESSES, 2))]
    code = f"""
import os, sys, warnings
import experiments.checkpoints, experiments.memory, reports.diagnosis, torch
from transformers import AutoConfig, AutoModelForMaskedLM, PreTrainedModel
warnings.simplefilter("error", ImportWarning)
for order in {orders!r}:
    child = os.fork()
    if not child:
        try:
            assert "xlprobe" not in sys.modules
            exec(order, {{}})
            import xlprobe
            from xlprobe import diagnose
            module = sys.modules["xlprobe.diagnose"]
            assert xlprobe.diagnose is diagnose is module.diagnose, order
        except BaseException as error:
            print(order, repr(error), flush=True)
            os._exit(1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
"""
    assert python(code, root) == ""


def test_the_table_the_list_and_the_imports_for_type_checkers_agree() -> None:
    assert xlprobe.__file__ is not None
    tree = ast.parse(Path(xlprobe.__file__).read_text("utf-8"))
    guard = next(node for node in tree.body if isinstance(node, ast.If))
    typed = {
        alias.name: str(node.module)
        for node in guard.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert typed == {name: module for module, names in xlprobe._NAMES.items() for name in names}
    assert sorted(typed) == sorted(xlprobe.__all__)


def test_every_name_is_the_modules_own_and_an_unknown_one_is_an_error() -> None:
    for module, names in xlprobe._NAMES.items():
        for name in names:
            assert getattr(xlprobe, name) is getattr(sys.modules[module], name)
    assert {*xlprobe.__all__, *ROOMS} <= set(dir(xlprobe))
    for room in ROOMS:
        assert getattr(xlprobe, room) is sys.modules[f"xlprobe.{room}"]
    with pytest.raises(AttributeError, match="module 'xlprobe' has no attribute 'nothing'"):
        xlprobe.nothing  # type: ignore[attr-defined]  # noqa: B018


def test_a_name_of_the_face_can_be_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xlprobe, "diagnose", len)
    assert vars(xlprobe)["diagnose"] is len
