"""The guide: its code runs word for word, its pictures are there, and what it promises of commands can be parsed."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from docs.site import commands, docstrings, errors, markdown, recipes, stage
from tests.test_docs import blocks, dead_links

ROOT = Path(__file__).resolve().parents[1]
GUIDE = sorted((ROOT / "docs" / "guide").glob("*.md"))
PAGES = [ROOT / "docs" / "install.md", *GUIDE]


def page_id(page: Path) -> str:
    return page.stem


def written_commands(text: str) -> list[str]:
    r"""The commands of both programs in a page, fenced or in a line.

    >>> written_commands("`mechedit report RUN` and\n```bash\nxlprobe demo  # x\npip list\n```")
    ['xlprobe demo', 'mechedit report RUN']
    """
    lines = [line for block in blocks(text, "bash") for line in block.replace("\\\n", " ").splitlines()]
    plain = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
    lines += re.findall(r"`([^`\n]+)`", plain)
    found = [line.split("  #")[0].strip() for line in lines]
    return [line for line in found if re.match(r"(mechedit|xlprobe) \S", line)]


def refused(line: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What the program's own parser says against a command; "" where it takes it."""
    program, *words = shlex.split(line)
    try:
        commands.parser(program).parse_args(words)
    except SystemExit as stop:
        return "" if stop.code == 0 else capsys.readouterr().err
    return ""


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_a_page_runs_as_it_is_written(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = blocks(page.read_text("utf-8"), "python")
    assert len(code) == 1
    monkeypatch.chdir(tmp_path)
    exec(compile(code[0], page.name, "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("page", GUIDE, ids=page_id)
def test_a_page_has_one_picture_and_no_dead_link(page: Path) -> None:
    pictures = re.findall(r"!\[([^\]]+)\]\(([^)]+)\)", page.read_text("utf-8"))
    assert len(pictures) == 1
    assert dead_links(page) == [
        link for link in dead_links(page) if "/reference/" in link
    ]  # made at the build


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_the_commands_of_a_page_are_parsed(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    faults = {line: refused(line, capsys) for line in written_commands(page.read_text("utf-8"))}
    assert {line: fault for line, fault in faults.items() if fault} == {}


def test_a_command_that_does_not_exist_is_found(capsys: pytest.CaptureFixture[str]) -> None:
    lines = written_commands("`mechedit attribut --prompt x` `mechedit report runs`")
    assert [bool(refused(line, capsys)) for line in lines] == [True, False]


@pytest.mark.parametrize("program", commands.PROGRAMS)
def test_every_command_has_an_example_that_its_parser_takes(
    program: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for leaf in commands.leaves(commands.parser(program)):
        lines = commands.examples(leaf)
        assert lines, leaf.prog
        assert [refused(line, capsys) for line in lines] == [""] * len(lines)
        assert all(line.startswith(leaf.prog.rsplit(" ", 1)[0]) for line in lines)


@pytest.mark.parametrize("program", commands.PROGRAMS)
def test_the_page_of_commands_has_every_option(program: str) -> None:
    page = commands.pages()[program]
    for leaf in commands.leaves(commands.parser(program)):
        section = page.split(f"## {leaf.prog}\n")[1].split("\n## ")[0]
        for action in leaf._actions:
            if not set(action.option_strings) & {"--help", "--json", "--quiet", "--seed"}:
                name = ", ".join(action.option_strings) or action.metavar
                assert f"`{name}`" in section, (leaf.prog, name)


def test_every_key_of_a_recipe_has_a_meaning() -> None:
    page = recipes.page()
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    assert len(rows) > 80
    assert [row for row in rows if row.endswith("|  |")] == []


def test_a_message_is_read_off_the_source() -> None:
    source = 'def f(x):\n    raise InputError(f"x: expected {x!r}; " + "say it")\nprint("no error here")'
    assert list(errors.messages(source)) == [("InputError", "x: expected {x}; say it")]
    assert "layers: expected" in errors.page()


def test_a_page_of_results_that_nobody_lists_is_listed(tmp_path: Path) -> None:
    for name in ("index", "engines", "benchmarks", "paper-pairs"):
        (tmp_path / f"{name}.md").write_text("x\nengines\n", "utf-8")
    assert stage.with_all_results("../benchmarks\n", tmp_path) == "../paper-pairs\n../benchmarks\n"


def test_prose_of_a_docstring_becomes_markup() -> None:
    text = "Adds `a*b` to x_ (2 * n).\n\n    y = x | z\n\nArgs:\n    x: One\n        and `two`."
    assert docstrings.to_rst(text.splitlines(), {"two": "m.two"}.get) == [
        "Adds ``a*b`` to x\\_ (2 \\* n).",
        "",
        "::",
        "",
        "    y = x | z",
        "",
        "Args:",
        "    x: One and :py:obj:`two <m.two>`.",
    ]
    assert markdown.cell("a|b") == "a\\|b"
