"""The rules of the house, read off the source: floors, sizes, pickle, print, package data, versions.

Every rule is a function from source to a list of faults, so each has a test in which it must find one.
"""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from tests.house import BELOW, ROOT, Import, circles, graph, imports, picture, room, rooms, sources

IMPORTED_AS = {"scikit_learn": "sklearn", "pot": "ot", "fonttools": "fontTools"}
PICKLERS = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
PICKLING_CALLS = {"torch.load", "torch.save", "read_pickle", "to_pickle"}
MAX_FUNCTION_LINES, MAX_FILE_LINES = 60, 450
MAX_MODEL_BYTES = 8_000_000

Rule = Callable[[str, ast.Module], list[str]]


def arrows_up(module: str, tree: ast.Module) -> list[str]:
    """Imports of a package that is not below the module's own."""
    own = module.split(".")[0]
    barred = set(BELOW) - BELOW[own] - {own}
    return _reported(one for one in imports(module, tree) if one.name.split(".")[0] in barred)


def late_imports(module: str, tree: ast.Module) -> list[str]:
    """Imports of the house inside a function, which hide a circle; a command line may put off what is heavy."""
    if "cli" in module.split("."):
        return []
    return _reported(
        one for one in imports(module, tree) if one.in_function and one.name.split(".")[0] in BELOW
    )


def imports_for_types(module: str, tree: ast.Module) -> list[str]:
    """Imports of the house for type checkers alone, which hide a circle; a face needs them for its lazy names."""
    if module in {f"{package}.__init__" for package in BELOW}:
        return []
    return _reported(
        one for one in imports(module, tree) if one.for_types and one.name.split(".")[0] in BELOW
    )


def commands_in_runs(module: str, tree: ast.Module) -> list[str]:
    """Imports of a command line by what a command line calls."""
    if "cli" in module.split("."):
        return []
    return _reported(one for one in imports(module, tree) if "cli" in one.name.split(".")[:2])


def _reported(found: Iterable[Import]) -> list[str]:
    """One fault for each line, by the shortest of the names that it imports."""
    lines: dict[int, str] = {}
    for one in found:
        lines[one.line] = min(lines.get(one.line, one.name), one.name, key=len)
    return [f"line {line} imports {name}" for line, name in lines.items()]


def pickles(module: str, tree: ast.Module) -> list[str]:
    """Imports of a pickling module, and calls that pickle or unpickle."""
    faults = _reported(one for one in imports(module, tree) if one.name.split(".")[0] in PICKLERS)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in PICKLING_CALLS or called.rpartition(".")[2] in PICKLING_CALLS:
                faults.append(f"line {node.lineno} calls {called}")
            if any(k.arg == "allow_pickle" and ast.unparse(k.value) != "False" for k in node.keywords):
                faults.append(f"line {node.lineno} allows pickle")
    return faults


def remote_code(module: str, tree: ast.Module) -> list[str]:
    """Whatever lets a checkpoint run its own code, or be read from a pickle: said, or left to a default."""
    faults = []
    for node in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        said = {k.arg: ast.unparse(k.value) for k in node.keywords}
        called = ast.unparse(node.func).rpartition(".")[2]
        loads = called in ("from_pretrained", "SentenceTransformer")
        if said.get("trust_remote_code", "" if loads else "False") != "False":
            faults.append(f"line {node.lineno} does not say trust_remote_code=False")
        if said.get("use_safetensors", "True") != "True":
            faults.append(f"line {node.lineno} reads weights that are no safetensors")
    return faults


def prints(module: str, tree: ast.Module) -> list[str]:
    """Calls of print outside the command line's files (anything in a folder cli)."""
    if "cli" in module.split("."):
        return []
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call))
    return [
        f"line {node.lineno} prints"
        for node in calls
        if isinstance(node.func, ast.Name) and node.func.id == "print"
    ]


def long_functions(module: str, tree: ast.Module) -> list[str]:
    """Functions longer than the eye takes in at once, decorators left out, docstring included."""
    functions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    lengths = ((node, (node.end_lineno or node.lineno) - node.lineno + 1) for node in functions)
    return [f"line {node.lineno} {node.name} has {n} lines" for node, n in lengths if n > MAX_FUNCTION_LINES]


def stray_dependencies(module: str, tree: ast.Module) -> list[str]:
    """Imports of what the project does not declare (development tools do not count)."""
    known = set(sys.stdlib_module_names) | set(BELOW) | declared()
    return _reported(one for one in imports(module, tree) if one.name.split(".")[0] not in known)


RULES: list[Rule] = [
    arrows_up,
    late_imports,
    imports_for_types,
    commands_in_runs,
    pickles,
    remote_code,
    prints,
    long_functions,
    stray_dependencies,
]
BREAKERS: list[tuple[Rule, str, str]] = [
    (arrows_up, "reports.page", "import mechedit"),
    (arrows_up, "reports.page", "from experiments.runs import RunFolder"),
    (arrows_up, "experiments.runs", "def late():\n    from mechedit.models.hooked import load_model"),
    (arrows_up, "mechedit.models.hooked", "import xlprobe.encoders.encoder"),
    (
        arrows_up,
        "xlprobe.encoders.encoder",
        "import importlib\nimportlib.import_module('mechedit.models.hooked')",
    ),
    (late_imports, "mechedit.models.hooked", "def late():\n    from mechedit.data.facts import FactEdit"),
    (
        late_imports,
        "xlprobe.data.corpora",
        "import importlib\nlambda: importlib.import_module('reports.page')",
    ),
    (
        imports_for_types,
        "mechedit.models.states",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from mechedit.models.hooked import HookedModel",
    ),
    (commands_in_runs, "mechedit.recipes.demo", "from mechedit.cli.options import command"),
    (commands_in_runs, "mechedit.recipes.demo", "from mechedit import cli"),
    (pickles, "reports.results", "import pickle"),
    (pickles, "mechedit.models.hooked", "from joblib import dump"),
    (pickles, "mechedit.models.hooked", "import torch\nweights = torch.load('x.pt')"),
    (pickles, "reports.results", "import pandas as pd\nframe = pd.read_pickle('x')"),
    (pickles, "reports.results", "import numpy as np\nnp.load('x.npy', allow_pickle=True)"),
    (
        remote_code,
        "mechedit.models.hooked",
        "from transformers import AutoModel\nAutoModel.from_pretrained('x')",
    ),
    (remote_code, "mechedit.models.hooked", "load('x', trust_remote_code=True)"),
    (remote_code, "mechedit.models.hooked", "load('x', use_safetensors=None)"),
    (prints, "mechedit.models.hooked", "print('hello')"),
    (long_functions, "mechedit.models.hooked", "def f():\n" + "    x = 1\n" * MAX_FUNCTION_LINES),
    (stray_dependencies, "mechedit.editors.steering.transport", "import ot"),
]
KEEPERS: list[tuple[Rule, str, str]] = [
    (
        arrows_up,
        "mechedit.evaluation.evaluate",
        "from experiments.runs import RunFolder\nfrom reports import results",
    ),
    (arrows_up, "mechedit.editors.steering.mega", "from ..model import HookedModel\nfrom . import base"),
    (late_imports, "mechedit.cli.run", "def late():\n    from mechedit.data.facts import FactEdit"),
    (late_imports, "reports.figures", "def late():\n    import matplotlib"),
    (
        imports_for_types,
        "mechedit.__init__",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from mechedit import editors",
    ),
    (commands_in_runs, "mechedit.cli.run", "from mechedit.cli.options import command"),
    (pickles, "mechedit.models.hooked", "import numpy as np\nnp.load('x.npy', allow_pickle=False)"),
    (remote_code, "mechedit.models.hooked", "load('x', use_safetensors=True, trust_remote_code=False)"),
    (prints, "mechedit.cli", "print('hello')"),
    (long_functions, "mechedit.models.hooked", "def f():\n" + "    x = 1\n" * (MAX_FUNCTION_LINES - 1)),
    (
        stray_dependencies,
        "mechedit.models.hooked",
        "import json, torch\nimport transformer_lens.model_bridge",
    ),
]


def declared() -> set[str]:
    """What a module may import of others, by the name that an import uses: the dependencies and the extras that a user
    can ask for."""
    table = project()
    extras = {name: lines for name, lines in table.get("optional-dependencies", {}).items() if name != "dev"}
    lines = [*table["dependencies"], *(line for own in extras.values() for line in own)]
    names = {re.split(r"[^\w.-]", line, maxsplit=1)[0].replace("-", "_") for line in lines}
    return {IMPORTED_AS.get(name, name) for name in names}


def project() -> dict[str, Any]:
    """The [project] table of pyproject.toml."""
    table: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    return table


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_source_keeps_the_rule(rule: Rule, root: Path) -> None:
    modules = sources(root)
    assert {name.split(".")[0] for name in modules} == set(BELOW)
    faults = {name: rule(name, ast.parse(text)) for name, text in modules.items()}
    assert {name: found for name, found in faults.items() if found} == {}


@pytest.mark.parametrize(("rule", "module", "text"), BREAKERS)
def test_rule_finds_the_fault(rule: Rule, module: str, text: str) -> None:
    assert len(rule(module, ast.parse(text))) == 1


@pytest.mark.parametrize(("rule", "module", "text"), KEEPERS)
def test_rule_lets_the_good_pass(rule: Rule, module: str, text: str) -> None:
    assert rule(module, ast.parse(text)) == []


def test_every_rule_has_a_breaker_and_a_keeper() -> None:
    assert {rule for rule, _, _ in BREAKERS} == {rule for rule, _, _ in KEEPERS} == set(RULES)


def test_files_stay_short(root: Path) -> None:
    lengths = {name: text.count("\n") for name, text in sources(root).items()}
    assert {name: n for name, n in lengths.items() if n > MAX_FILE_LINES} == {}


def test_no_circle_of_files_or_rooms(root: Path) -> None:
    modules = sources(root)
    assert circles(graph(modules)) == []
    assert circles(rooms(modules)) == []


def test_a_circle_is_seen_through_functions_and_packages() -> None:
    modules = {
        "mechedit.a.one": "def late():\n    from mechedit.b import two",
        "mechedit.b.__init__": "",
        "mechedit.b.two": "import mechedit.c",
        "mechedit.c": "from mechedit.a.one import late",
    }
    assert circles(graph(modules)) == [["mechedit.a.one", "mechedit.b.two", "mechedit.c"]]
    assert circles(rooms(modules)) == [["mechedit.a", "mechedit.b", "mechedit.c"]]


@pytest.mark.parametrize(("package", "most"), [("mechedit", 12), ("xlprobe", 10)])
def test_the_top_level_has_rooms_and_no_loose_files(package: str, most: int, root: Path) -> None:
    own = {room(name) for name in sources(root) if name.startswith(f"{package}.")} - {package}
    assert len(own) <= most
    loose = {file.name for file in (root / package).glob("*.py")}
    assert loose == {"__init__.py", "diagnose.py"}


def test_no_name_stands_for_two_things(root: Path) -> None:
    """A class has one name in the whole house, and a name that is not private has one class."""
    places: dict[str, list[str]] = {}
    for module, text in sources(root).items():
        for node in ast.parse(text).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(module)
    assert {name: modules for name, modules in places.items() if len(modules) > 1} == {}


def test_the_picture_of_the_house_is_drawn_from_its_imports(root: Path) -> None:
    """`make house` draws it again."""
    assert (root / "docs" / "house.svg").read_text("utf-8") == picture(sources(root))


def test_importing_a_lower_floor_loads_no_upper_one(root: Path) -> None:
    """What the source says, seen at work: an interpreter that imports the lower floors knows no method."""
    code = (
        "import importlib, json, pkgutil, sys\n"
        "for name in ('reports', 'experiments'):\n"
        "    for found in pkgutil.walk_packages(importlib.import_module(name).__path__, name + '.'):\n"
        "        importlib.import_module(found.name)\n"
        "print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    )
    out = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    loaded = set(json.loads(out.stdout.splitlines()[-1]))
    assert {"reports", "experiments"} <= loaded
    assert not loaded & {"mechedit", "xlprobe"}


@pytest.mark.parametrize("package", BELOW)
def test_package_is_typed_and_says_what_it_is(package: str, root: Path) -> None:
    assert (root / package / "py.typed").is_file()
    assert ast.get_docstring(ast.parse((root / package / "__init__.py").read_text("utf-8")))


@pytest.mark.parametrize("model", ["gpt2", "llama"])
def test_embedded_model_is_shipped(model: str, root: Path) -> None:
    folder = root / "mechedit" / "factworld" / "models" / model
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        assert (folder / name).is_file()
    assert (folder / "model.safetensors").stat().st_size <= MAX_MODEL_BYTES


def test_git_ignores_nothing_that_ships(root: Path) -> None:
    """The wheel leaves out what git ignores."""
    if not (root / ".git").exists():
        pytest.skip("not a git checkout")
    data = [
        str(file.relative_to(root))
        for package in BELOW
        for file in (root / package).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    ]
    command = ["git", "check-ignore", *data, "runs/x"]
    out = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert out.stdout.split() == ["runs/x"]


def test_versions_agree(root: Path) -> None:
    version = project()["version"]
    changelog, citation = ((root / name).read_text("utf-8") for name in ("CHANGELOG.md", "CITATION.cff"))
    headings = re.findall(r"^## \[(\d[^\]]*)\] - \d{4}-\d\d-\d\d$", changelog, re.M)
    cited = re.findall(r"^version: (\S+)$", citation, re.M)
    assert headings[0] == version
    assert cited == [version]


def test_torch_is_pinned_exactly() -> None:
    assert "torch==2.13.0" in project()["dependencies"]
