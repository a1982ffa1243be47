"""The commands: what they print, what they refuse, and that a refusal leaves nothing behind."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mechedit.cli import main
from mechedit.factworld import export


def run(capsys: pytest.CaptureFixture[str], *argv: str | Path) -> dict[str, Any]:
    assert main([*map(str, argv), "--json", "--quiet"]) == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


@pytest.fixture
def data(tmp_path: Path) -> Path:
    export(tmp_path / "edits.json", schema="counterfact", limit=6, seed=9)
    return tmp_path / "edits.json"


def test_attribute_gives_rows_that_sum_up(capsys: pytest.CaptureFixture[str]) -> None:
    result = run(
        capsys, "attribute", "--prompt", "The capital of France is", "--target", "Paris", "--top-k", "7"
    )
    assert len(result["mlp_neurons"]) == len(result["attn_neurons"]) == 7
    assert set(result["mlp_neurons"][0]) == {"layer", "neuron", "score"}
    assert set(result["attn_neurons"][0]) == {"layer", "head", "dim", "pos", "score"}
    assert set(result["heads"][0]) == {"layer", "head", "score"}
    total = (
        result["embedding_logp"] + sum(row["score"] for row in result["layers"]) + result["completeness_gap"]
    )
    assert total == pytest.approx(result["logp"], abs=1e-6)


def test_attribute_all_gives_every_neuron(capsys: pytest.CaptureFixture[str]) -> None:
    result = run(
        capsys, "attribute", "--prompt", "The capital of France is", "--target", "Paris", "--top-k", "all"
    )
    assert len(result["mlp_neurons"]) == 8 * 4 * 96
    assert len(result["attn_neurons"]) == 8 * 96 * len(result["ids"])


@pytest.mark.usefixtures("few_to_choose_by")
def test_evaluate_writes_a_run_and_reads_it_again(
    capsys: pytest.CaptureFixture[str], data: Path, tmp_path: Path
) -> None:
    argv = ("evaluate", "--editor", "mega", "--data", data, "--limit", "3", "--out", tmp_path / "run")
    first = run(capsys, *argv)
    assert first["n_known"] == first["n_total"] == 3
    assert {"ES", "PS", "NS", "S", "Acc", "Gen", "Spec"} <= set(first["scores"])
    manifest = (tmp_path / "run" / "manifest.json").read_bytes()
    assert run(capsys, *argv) == first
    assert (tmp_path / "run" / "manifest.json").read_bytes() == manifest
    assert main(["report", str(tmp_path / "run")]) == 0
    assert "<script src" not in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


@pytest.mark.shared
def test_a_model_that_knows_nothing_says_so(
    capsys: pytest.CaptureFixture[str], shared_dir: Path, tmp_path: Path
) -> None:
    data = shared_dir / "data" / "counterfact" / "counterfact-val.json"
    argv = [
        "evaluate",
        "--editor",
        "mega",
        "--data",
        str(data),
        "--limit",
        "5",
        "--out",
        str(tmp_path / "run"),
        "--quiet",
    ]
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert "n known 0" in out
    assert "Acc" not in out


def bad_records(tmp_path: Path, data: Path, change: dict[str, Any]) -> Path:
    records = json.loads(data.read_text())
    records[1]["requested_rewrite"] |= change
    file = tmp_path / "bad.json"
    file.write_text(json.dumps(records))
    return file


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prompt": "No place for a subject"}, ("bad.json", "1", "prompt")),
        ({"target_new": {"str": "  ", "id": "Q1"}}, ("bad.json", "1", "target_new")),
        ({"target_new": 7}, ("bad.json", "1", "target_new")),
        ({"subject": None}, ("bad.json", "1", "subject")),
    ],
)
def test_a_malformed_record_is_named(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    data: Path,
    change: dict[str, Any],
    words: tuple[str, ...],
) -> None:
    refused(capsys, tmp_path, ("evaluate", "--data", bad_records(tmp_path, data, change)), words)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("evaluate", "--data", "no/such.json"), ("no/such.json",)),
        (("evaluate", "--data", "DATA", "--model", "no/such/folder"), ("no/such/folder",)),
        (("evaluate", "--data", "DATA", "--window", "5-99"), ("window", "99")),
        (("evaluate", "--data", "DATA", "--window", "soon"), ("window", "soon")),
        (("evaluate", "--data", "DATA", "--families", "astrology"), ("families", "astrology")),
        (("evaluate", "--data", "DATA", "--limit", "0"), ("limit",)),
        (("evaluate", "--data", "DATA", "--editor", "roma"), ("editor", "roma")),
        (("evaluate", "--data", "DATA", "--editor", "ft", "--window", "4-7"), ("window", "ft")),
        (("evaluate", "--data", "DATA", "--mode", "twice"), ("mode", "twice")),
        (("evaluate", "--data", "DATA", "--families", "ripple"), ("facts", "tests")),
        (("attribute", "--prompt", "The capital of France is", "--target", " "), ("target",)),
        (
            ("attribute", "--prompt", "The capital of France is", "--target", "Paris", "--top-k", "-1"),
            ("top-k",),
        ),
        (("attribute", "--prompt", "The capital of France is"), ("--target",)),
        (("factworld", "export", "--limit", "5", "--out", "no/folder/x.json"), ("no/folder/x.json",)),
        (("report", "no/such/run"), ("no/such/run",)),
        (("dance",), ("dance",)),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    data: Path,
    argv: tuple[str, ...],
    words: tuple[str, ...],
) -> None:
    refused(capsys, tmp_path, tuple(data if word == "DATA" else word for word in argv), words)


def refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, argv: tuple[str | Path, ...], words: tuple[str, ...]
) -> None:
    out = tmp_path / "run"
    extra = ("--out", str(out)) if argv[0] == "evaluate" else ()
    capsys.readouterr()
    try:
        status = main([*map(str, argv), *extra])
    except SystemExit as stop:
        status = int(stop.code or 0)
    error = capsys.readouterr().err
    assert status == 2, error
    lines = [line for line in error.splitlines() if "error:" in line]
    assert len(lines) == 1, error
    for word in words:
        assert word in lines[0]
    assert not out.exists()


def test_the_folder_of_another_run_is_refused(
    capsys: pytest.CaptureFixture[str], data: Path, tmp_path: Path
) -> None:
    argv = ["evaluate", "--editor", "no_edit", "--data", str(data), "--out", str(tmp_path / "run"), "--quiet"]
    assert main([*argv, "--limit", "2"]) == 0
    files = {file: file.read_bytes() for file in (tmp_path / "run").rglob("*") if file.is_file()}
    capsys.readouterr()
    assert main([*argv, "--limit", "1"]) == 2
    assert "another folder" in capsys.readouterr().err
    assert files == {file: file.read_bytes() for file in (tmp_path / "run").rglob("*") if file.is_file()}


@pytest.mark.parametrize(
    "command",
    [
        *("demo", "attribute", "edit", "contrast", "evaluate", "anatomy", "faithfulness", "report"),
        *("factworld train", "factworld check", "factworld export"),
    ],
)
def test_every_command_explains_itself(capsys: pytest.CaptureFixture[str], command: str) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*command.split(), "--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert f"example: mechedit {command}" in " ".join(out.split())
    assert "--json" in out


def test_every_editor_of_the_registry_is_evaluated(capsys: pytest.CaptureFixture[str], data: Path) -> None:
    from mechedit.editors import NAMES

    for name in ("ft", "ike"):
        assert name in NAMES
        result = run(capsys, "evaluate", "--editor", name, "--data", data, "--limit", "2")
        assert result["editor"] == name
        assert result["scores"]["Acc"]["value"] == 1.0


def test_evaluate_in_other_modes_and_families(
    capsys: pytest.CaptureFixture[str], data: Path, tmp_path: Path
) -> None:
    (tmp_path / "texts.json").write_text('{"Greek": ["Greek is spoken in Athens."]}', encoding="utf-8")
    argv = ("evaluate", "--editor", "ft", "--data", data, "--limit", "2")
    both = run(
        capsys,
        *(*argv, "--mode", "sequential", "--families", "token,generation", "--out", tmp_path / "run"),
        *("--references", tmp_path / "texts.json"),
    )
    assert both["mode"] == "sequential"
    assert {"Rel_tok", "Rel_all", "Loc_tok", "Loc_all", "GE"} <= set(both["scores"])
    assert (tmp_path / "run" / "report.html").is_file()
    assert len(list((tmp_path / "run" / "cases").glob("ft-sequential-*.json"))) == 2


def test_evaluate_runs_ripple_edits(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    export(tmp_path / "ripple.json", schema="ripple", limit=2, seed=9)
    argv = ("evaluate", "--editor", "ike", "--data", tmp_path / "ripple.json", "--families", "ripple")
    found = run(capsys, *argv)["ripple"]
    assert sum(found["outcomes"].values()) == 2
    assert {row["metric"] for row in found["axes"]} == {"RS", "LG", "SA", "CI", "CII", "FN"}


@pytest.mark.parametrize("content", ["[]", '{"Greek": []}', '{"Greek": "one"}', "{"])
def test_references_that_are_none_are_refused(
    capsys: pytest.CaptureFixture[str], data: Path, tmp_path: Path, content: str
) -> None:
    (tmp_path / "texts.json").write_text(content, encoding="utf-8")
    argv = ("evaluate", "--data", data, "--families", "generation", "--references", tmp_path / "texts.json")
    refused(capsys, tmp_path, argv, ("references",))


HEAVY = ["torch", "transformers", "numpy", "pandas", "matplotlib"]
COMMANDS = (
    *(
        "demo",
        "attribute",
        "edit",
        "evaluate",
        "anatomy",
        "faithfulness",
        "compare",
        "drift",
        "covariance",
        "tune",
    ),
    *("factworld", "diagnose", "run", "report"),
)


def test_help_and_wrong_usage_load_nothing_heavy(root: Path) -> None:
    lines: list[list[str]] = [[name, "--help"] for name in COMMANDS]
    lines += [["--help"], ["factworld", "export", "--help"], ["dance"]]
    lines += [["evaluate", "--data", "x.json", "--limit", "0"], ["attribute", "--prompt", "Paris is"]]
    lines += [["compare", "--editors", "roma"], ["faithfulness", "--limit", "1"], ["edit", "--fact", "{}"]]
    code = (
        "import contextlib, json, sys\n"
        "from mechedit.cli import main\n"
        "loaded = {}\n"
        "for line in json.loads(sys.argv[1]):\n"
        "    with contextlib.suppress(SystemExit):\n"
        "        main(line)\n"
        "    loaded[' '.join(line)] = [name for name in json.loads(sys.argv[2]) if name in sys.modules]\n"
        "print(json.dumps(loaded))"
    )
    command = [sys.executable, "-c", code, json.dumps(lines), json.dumps(HEAVY)]
    out = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    loaded = json.loads(out.stdout.splitlines()[-1])
    assert len(loaded) == len(lines)
    assert {line: names for line, names in loaded.items() if names} == {}


def test_a_heavy_import_would_be_seen(root: Path) -> None:
    code = "import sys, mechedit.models.hooked; sys.exit(0 if 'torch' in sys.modules else 1)"
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True)


def test_a_line_is_said_once_however_often_its_cause_is_met(root: Path) -> None:
    code = (
        "import sys, types, logging; from experiments.cli.program import execute\n"
        "log = logging.getLogger('facts')\n"
        "def run(options):\n"
        "    for line in ('first', 'second', 'first', 'second'):\n"
        "        log.warning('%s reading', line)\n"
        "parser = types.SimpleNamespace(prog='p', parse_args=lambda argv: types.SimpleNamespace(run=run))\n"
        "sys.exit(execute(parser, []))"
    )
    said = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert said.stderr.splitlines() == ["facts: first reading", "facts: second reading"]
