"""The documentation, tested: the README's code runs, local links lead somewhere, public names are documented.

Doctests are collected by pytest itself, over the four packages.
"""

from __future__ import annotations

import importlib
import inspect
import re
import shlex
from pathlib import Path

import pytest

from reports import overview
from tests.xl_files import write_data
from tests.xl_tiny import tiny_folder
from xlprobe.cli import main

PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/own-encoder.md")
PACKAGES = ("mechedit", "experiments", "reports", "xlprobe")
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def blocks(text: str, language: str) -> list[str]:
    r"""The fenced code blocks of one language in a Markdown text.

    >>> blocks("a\n```python\nx = 1\n```\nb", "python")
    ['x = 1\n']
    """
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.M | re.S)


def local_links(text: str) -> list[str]:
    """Targets of links that are files of the repository, anchors cut off.

    >>> local_links("[a](LICENSE) ![b](docs/x.png) [c](https://example.org) [d](#top) [e](A.md#b)")
    ['LICENSE', 'docs/x.png', 'A.md']
    """
    targets = (target.partition("#")[0] for target in LINK.findall(text) if "://" not in target)
    return [target for target in targets if target]


def dead_links(page: Path) -> list[str]:
    """Local links of a page that lead nowhere."""
    return [link for link in local_links(page.read_text("utf-8")) if not (page.parent / link).exists()]


def undocumented(package: str) -> list[str]:
    """Public names of a package (`__all__`) without a docstring of their own."""
    module = importlib.import_module(package)
    names = [(name, getattr(module, name)) for name in getattr(module, "__all__", ())]
    documented = [(name, item) for name, item in names if callable(item) or inspect.ismodule(item)]
    return [name for name, item in documented if not (item.__doc__ or "").strip()]


def without_example(package: str) -> list[str]:
    """Public functions of a package (`__all__`) whose docstring shows no example."""
    module = importlib.import_module(package)
    items = ((name, getattr(module, name)) for name in getattr(module, "__all__", ()))
    return [name for name, item in items if inspect.isfunction(item) and ">>>" not in (item.__doc__ or "")]


@pytest.mark.parametrize("page", PAGES)
def test_local_links_lead_somewhere(page: str, root: Path) -> None:
    assert dead_links(root / page) == []


def test_a_dead_link_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("[here](page.md) and [gone](nowhere.md)", "utf-8")
    assert dead_links(page) == ["nowhere.md"]


@pytest.mark.parametrize("package", PACKAGES)
def test_public_names_are_documented(package: str) -> None:
    assert undocumented(package) == []
    assert without_example(package) == []


def test_a_name_without_docstring_or_example_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bare_package.py").write_text("__all__ = ['f']\ndef f(): pass\n", "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    assert undocumented("bare_package") == without_example("bare_package") == ["f"]


def test_readme_names_only_what_the_makefile_has(root: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (root / "Makefile").read_text("utf-8"), re.M))
    text = "\n".join((root / page).read_text("utf-8") for page in ("README.md", "CONTRIBUTING.md"))
    asked = set(re.findall(r"(?:^|`| )make ([a-z-]+)", text, re.M))
    assert {"demo", "test"} <= asked <= targets


def test_readme_code_runs(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The README's Python blocks, the five lines and one of each package, word for word."""
    blocks_of_code = blocks((root / "README.md").read_text("utf-8"), "python")
    monkeypatch.chdir(tmp_path)
    printed = []
    for code in blocks_of_code:
        exec(compile(code, "README.md", "exec"), {})
        printed.append(capsys.readouterr().out)
    first, of_mechedit, of_xlprobe = printed
    assert "head" in first
    assert (tmp_path / "first.svg").is_file()
    assert "head" in of_mechedit
    assert "Acc" in of_mechedit
    before, after = map(float, re.findall(r"0\.\d+|1\.0", of_xlprobe.splitlines()[0]))
    assert after > before + 0.2
    assert "macro_f1" in of_xlprobe


def test_the_script_of_ones_own_encoder_runs(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """docs/own_encoder.py, word for word, on a tiny encoder and a data folder of the real one's shape."""
    monkeypatch.setattr("reports.batch._PARALLEL", 100)  # no process of its own for ten small pages
    data = write_data(tmp_path / "data")
    argv = ["--encoder", str(tiny_folder("xlm-roberta")), "--data", str(data), "--out", str(tmp_path / "out")]
    monkeypatch.syspath_prepend(root / "docs")
    importlib.import_module("own_encoder").main([*argv, "--share", "0.05"])
    printed = capsys.readouterr().out
    assert [line[11:12] for line in printed.splitlines() if line.startswith("[")] == [*"123456", "d"]
    results = ("aligned", "scores-aligned", "distances-aligned", "gradients", "study")
    assert all(overview.state(tmp_path / "out" / name) == ("complete", "") for name in results)
    assert main(["report", str(tmp_path / "out"), "--quiet"]) == 0


@pytest.mark.slow
def test_readme_commands_run(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The README's `mechedit` commands, one after the other; a model that would be downloaded is replaced."""
    from mechedit.cli import main as mechedit

    readme = (root / "README.md").read_text("utf-8")
    lines = [line for block in blocks(readme, "bash") for line in block.splitlines()]
    commands = [shlex.split(line)[1:] for line in lines if line.startswith("mechedit ")]
    assert {command[0] for command in commands} >= {"attribute", "evaluate", "factworld", "report"}
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiments").symlink_to(root / "experiments")  # the recipes
    for command in commands:
        assert mechedit(["factworld" if word == "gpt2" else word for word in command]) == 0
