"""`import mechedit`, `import xlprobe`: what may stand in their way, and what a command line loads before it works."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FACES = ("mechedit", "xlprobe")
HEAVY = ("torch", "transformers", "numpy", "pandas", "matplotlib", "tqdm")


def python(code: str, folder: Path, root: Path) -> subprocess.CompletedProcess[str]:
    """Runs `code` in `folder`, which is the first place that it imports from."""
    environment = {**os.environ, "PYTHONPATH": str(root)}
    environment.pop("PYTHONSAFEPATH", None)
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=120
    )


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("file", ["experiments.py", "experiments/__init__.py", "reports/__init__.py"])
def test_what_hides_a_package_of_ours_is_named(face: str, file: str, tmp_path: Path, root: Path) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text("mine = 1\n", encoding="utf-8")
    last = python(f"import {face}", tmp_path, root).stderr.splitlines()[-1]
    package = file.partition("/")[0].removesuffix(".py")
    assert last == (
        f"ImportError: {face}: {tmp_path / file} hides {face}'s own package {package!r}; rename it, or start "
        "Python in another folder"
    )


@pytest.mark.parametrize("face", FACES)
def test_folders_without_code_hide_nothing(face: str, tmp_path: Path, root: Path) -> None:
    (tmp_path / "experiments").mkdir()
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports" / "july.html").touch()
    done = python(f"import {face}; print({face}.__file__)", tmp_path, root)
    assert Path(done.stdout.strip()).parent == root / face, done.stderr


def test_what_every_command_line_imports_is_light(tmp_path: Path, root: Path) -> None:
    modules = sorted(
        f"experiments.cli.{file.stem}" for file in (root / "experiments" / "cli").glob("[a-z]*.py")
    )
    code = f"import json, sys, reports.errors, {', '.join(modules)}; print(json.dumps(sorted(sys.modules)))"
    done = python(code, tmp_path, root)
    assert set(modules) <= set(json.loads(done.stdout))
    assert not set(HEAVY) & set(json.loads(done.stdout))
