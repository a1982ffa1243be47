"""The wheel: what it carries, and that it works where the repository is not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.house import BELOW, ROOT

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir"]
    subprocess.run([*build, str(folder), str(ROOT)], check=True, capture_output=True)
    (made,) = folder.glob("*.whl")
    return made


def test_wheel_carries_the_package_data(wheel: Path) -> None:
    shipped = set(zipfile.ZipFile(wheel).namelist())
    present = {
        file.relative_to(ROOT).as_posix()
        for package in BELOW
        for file in (ROOT / package).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert present - shipped == set()
    assert not {name for name in shipped if name.split("/")[0] in ("tests", "docs", "conftest.py")}


def test_an_installed_wheel_works_outside_the_repository(wheel: Path, tmp_path: Path) -> None:
    site, work = tmp_path / "site", tmp_path / "work"
    work.mkdir()
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--disable-pip-version-check"]
    subprocess.run([*pip, "--target", str(site), str(wheel)], check=True, capture_output=True)

    def ran(program: str, *words: str) -> str:
        call = (
            f"import {program}.cli as c, sys; assert c.__file__.startswith({str(site)!r}); sys.exit(c.main())"
        )
        done = subprocess.run(
            [sys.executable, "-c", call, *words],
            cwd=work,
            env=os.environ | {"PYTHONPATH": str(site)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    ran("mechedit", "factworld", "export", "--schema", "counterfact", "--out", "facts.json", "--limit", "2")
    prompt = ("--prompt", "The mother tongue of", "--target", "English")
    assert json.loads(ran("mechedit", "attribute", "--model", "factworld", *prompt, "--json"))
    ran("mechedit", "evaluate", "--editor", "no_edit", "--data", "facts.json", "--out", "run", "--quiet")
    ran("mechedit", "report", "run")
    assert "<h1>" in (work / "run" / "report.html").read_text(encoding="utf-8")
    assert json.loads(ran("xlprobe", "diagnose", "--json"))["ok"]
