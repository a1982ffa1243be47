"""What an editor is set to and reads stands in the run: another covariance, text or pool is another run, by name."""

from __future__ import annotations

import json
import logging
import shlex
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.again import compare_runs
from experiments.runs import RunFolder
from experiments.settings import fingerprint, identity
from mechedit.cli import main
from mechedit.editors import FT, IKE, MEGA, MEMIT, NAMES, ROME, SAKE, Editor, LoRA, WeightChange, by_name
from mechedit.editors.settings import resolved
from mechedit.editors.weights.corpus import text_corpus
from mechedit.editors.weights.covariance import Covariance, covariances
from mechedit.editors.weights.lora import query_value_modules
from mechedit.evaluation.evaluate import evaluate
from mechedit.factworld import edits
from mechedit.models.hooked import HookedModel, load_model
from reports import compare, page
from reports.errors import InputError
from tests.test_evaluation import known_facts, open_run
from tests.tiny import SENTENCES, tiny_folder, tiny_model

TEXTS = text_corpus(SENTENCES * 8, source="here.txt"), text_corpus(SENTENCES[:5] * 9, source="there.txt")
EDITOR = ROME(layer=1, steps=3, lr=0.5, weight_decay=1e-3, kl_factor=0.0, clamp=4.0, contexts=((2, 3),))


@pytest.fixture
def at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], HookedModel]:
    """A model just loaded, with the covariance of one text or of the other in its cache."""

    def load(text: int) -> HookedModel:
        monkeypatch.setenv("MECHEDIT_CACHE", str(tmp_path / f"cache-{text}"))
        model = load_model(tiny_folder("gpt2"))
        covariances(model, TEXTS[text], layers=[1], progress=False)
        return model

    return load


def run_of(folder: Path, model: HookedModel, editor: Editor = EDITOR, n: int = 2) -> None:
    evaluate(model, editor, known_facts()[:n], progress=False, run=open_run(folder))


def settings_in(folder: Path, name: str = "rome") -> dict[str, Any]:
    """The only settings of an editor that a run has recorded."""
    (settings,) = json.loads((folder / "provenance.json").read_text())["settings"][name].values()
    assert isinstance(settings, dict)
    return settings


def test_another_covariance_is_another_edit_and_another_run(
    at_home: Callable[[int], HookedModel], tmp_path: Path
) -> None:
    """The fault: the same settings and configuration, and another result with another cache folder."""
    fact = known_facts()[0]
    changes = []
    for text in (0, 1):
        model = at_home(text)
        ((part,),) = EDITOR.change(model, fact).parts.values()
        changes.append(part.left @ part.right)  # type: ignore[union-attr]
    assert not torch.allclose(changes[0], changes[1])

    run_of(tmp_path / "run", at_home(0))
    recorded = settings_in(tmp_path / "run")["covariance"]
    assert (recorded["text"], recorded["layer"]) == (TEXTS[0].digest, 1)
    assert recorded["about"]["source"] == "here.txt"
    run_of(tmp_path / "run", at_home(0))  # goes on
    with pytest.raises(
        InputError,
        match=r"settings of rome in .*'covariance\.text' is .* \(here.txt\) there and .* \(there.txt\) now",
    ) as refused:
        run_of(tmp_path / "run", at_home(1))
    assert TEXTS[0].digest[:12] in str(refused.value)
    assert TEXTS[1].digest[:12] in str(refused.value)


def test_again_says_which_settings_differ(at_home: Callable[[int], HookedModel], tmp_path: Path) -> None:
    run_of(tmp_path / "a", at_home(0))
    run_of(tmp_path / "same", at_home(0))
    same = compare_runs(tmp_path / "a", tmp_path / "same")
    assert (same.reproduced, same.settings, same.identical) == (True, (), 2)
    run_of(tmp_path / "b", at_home(1))
    other = compare_runs(tmp_path / "a", tmp_path / "b")
    assert not other.reproduced
    assert [text.split(" was ")[0] for text in other.settings] == [
        "rome: covariance.text",
        "rome: covariance.tokens",
    ]
    assert [name in other.settings[0] for name in ("(here.txt)", "(there.txt)")] == [True, True]
    assert other.differing  # by numbers, not by a hash of what made them
    assert all("settings" not in text and "made_with" not in text for text in other.differing)
    run_of(tmp_path / "c", at_home(0), replace(EDITOR, clamp=2.0))
    assert compare_runs(tmp_path / "a", tmp_path / "c").settings == ("rome: clamp was 4.0, is 2.0",)


def test_settings_are_those_that_the_edit_takes() -> None:
    """Against the editor's own table and pieces, each asked for apart."""
    model = load_model("factworld")
    rome, ready = resolved(ROME(), model), ROME().ready(model)
    for name in ("layer", "steps", "lr", "weight_decay", "kl_factor", "clamp"):
        assert rome[name] == getattr(ready, name)
    assert rome["context_texts"] == list(ready._fixed(model)[0])
    assert rome["covariance"]["about"]["condition"] == pytest.approx(
        ready._fixed(model)[1].condition, rel=1e-2
    )
    assert sorted(resolved(MEMIT(), model)["covariances"]) == ["0", "1", "2"]
    assert resolved(LoRA(), model)["targets"] == query_value_modules(model)
    assert resolved(FT(), model)["layer"] == 4
    fitted = resolved(MEGA(window=(4, 6), gate="always", contexts=((2, 3),)), model)
    assert (fitted["window"], len(fitted["context_texts"])) == ([4, 6], 3)
    assert resolved(SAKE(gate="always"), model)["reg"] == 1e-2


@pytest.mark.parametrize("name", NAMES)
def test_settings_of_every_editor_are_plain_and_the_same_again(name: str) -> None:
    model = load_model("factworld")
    settings = resolved(by_name(name), model)
    assert json.loads(json.dumps(settings)) == settings
    assert fingerprint(settings) == fingerprint(resolved(by_name(name), load_model("factworld")))


def by_length(texts: Sequence[str]) -> torch.Tensor:
    return torch.tensor([[float(len(text)), 1.0] for text in texts])


def by_vowels(texts: Sequence[str]) -> torch.Tensor:
    return torch.tensor([[float(sum(letter in "aeiou" for letter in text)), 1.0] for text in texts])


def test_each_thing_that_an_editor_reads_makes_another_fingerprint() -> None:
    model = tiny_model("gpt2")
    c = [covariances(model, text, layers=[1], progress=False)[1] for text in TEXTS]
    by_hand = [Covariance(m.moment, m.n_tokens, 1, "by hand") for m in c]
    pools = tuple(edits(3)), tuple(edits(4))
    editors: list[Editor] = [
        replace(EDITOR, covariance=c[0]),
        replace(EDITOR, covariance=c[1]),
        replace(EDITOR, covariance=by_hand[0]),
        replace(EDITOR, covariance=by_hand[1]),
        replace(EDITOR, covariance=c[0], contexts=((3, 3),)),
        MEMIT(layers=(1, 1), contexts=((2, 3),), covariances={1: c[0]}),
        MEMIT(layers=(1, 1), contexts=((2, 3),), covariances={1: c[1]}),
        IKE(pool=pools[0]),
        IKE(pool=pools[1]),
        IKE(pool=pools[0], embed=by_length),
        IKE(pool=pools[0], embed=by_vowels),
        MEGA(window=(0, 1), gate="always"),
        MEGA(window=(0, 1), gate="always", paraphrases={"{} is in": ("{} lies in",)}),
    ]
    marks = [fingerprint(resolved(editor, model)) for editor in editors]
    assert len(set(marks)) == len(editors)
    assert marks == [fingerprint(resolved(editor, model)) for editor in editors]
    told = replace(c[0], source="the same text elsewhere", measured=1.0)  # for the reader alone
    assert fingerprint(resolved(replace(EDITOR, covariance=told), model)) == marks[0]


def test_what_is_for_the_reader_is_no_setting_at_any_depth() -> None:
    assert identity({"a": [{"about": 1, "b": 2}], "about": {"c": 3}}) == {"a": [{"b": 2}]}


def test_the_condition_is_kept_with_the_covariance(at_home: Callable[[int], HookedModel]) -> None:
    model = at_home(0)
    (read,) = covariances(model, TEXTS[0], layers=[1], progress=False).values()
    fresh = Covariance(read.moment, read.n_tokens, 1, "")
    assert read.measured == fresh.condition
    assert read.made_of["text"] == TEXTS[0].digest


def test_the_page_shows_the_settings_and_opens_runs_that_have_none(
    at_home: Callable[[int], HookedModel], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run_of(run, at_home(0))
    open_run(run).write_json("summary", {"title": "t", "n": 2, "editors": []})
    shown = page.render(run)
    for text in ("Settings of the editors", "covariance.text", TEXTS[0].digest, "here.txt", "context_texts"):
        assert text in shown
    provenance = json.loads((run / "provenance.json").read_text())
    del provenance["settings"]
    (run / "provenance.json").write_text(json.dumps(provenance))
    assert "Settings of the editors" not in page.render(run)


def test_two_runs_side_by_side_name_the_settings_that_differ(
    at_home: Callable[[int], HookedModel], tmp_path: Path
) -> None:
    for text in (0, 1):
        run_of(tmp_path / str(text), at_home(text))
        summary = {"title": "t", "n": 2, "editors": [{"name": "rome", "es": {"value": 0.5, "n": 2}}]}
        open_run(tmp_path / str(text)).write_json("summary", summary)
    shown = compare.build(tmp_path / "0", tmp_path / "1", tmp_path / "both.html").read_text(encoding="utf-8")
    for said in ("rome: covariance.text", *(text.digest for text in TEXTS), "here.txt", "there.txt"):
        assert said in shown
    assert "rome: clamp" not in shown


def test_a_case_of_an_earlier_version_is_not_taken_over(
    at_home: Callable[[int], HookedModel], tmp_path: Path
) -> None:
    """It does not say what was read; but it can be compared."""
    run = tmp_path / "run"
    run_of(run, at_home(0))
    for file in (run / "cases").glob("*.json"):
        case = json.loads(file.read_text())
        del case["made_with"]
        file.write_text(json.dumps({**case, "settings": "ab"}))
    with pytest.raises(InputError, match="did not record what editors read"):
        run_of(run, at_home(0))
    run_of(tmp_path / "new", at_home(0))
    assert compare_runs(run, tmp_path / "new").reproduced


def test_a_saved_edit_says_what_it_was_made_with(tmp_path: Path) -> None:
    """The change alone, and the edited checkpoint."""
    model, facts = tiny_model("gpt2"), known_facts()[:2]
    c = covariances(model, TEXTS[0], layers=[1], progress=False)[1]
    editor = replace(EDITOR, covariance=c)
    change = editor.change(model, facts[0])
    loaded = WeightChange.load(change.save(tmp_path / "change"), model)
    assert loaded.settings == change.settings == resolved(editor, model)
    with change.apply(model) as once, FT(layer=1, steps=1, lr=1e-3).apply(once, facts[1]) as twice:
        folder = twice.save_pretrained(tmp_path / "model")
    said = json.loads((folder / "edit.json").read_text())["edits"]
    assert [(edit["editor"], edit["facts"][0]["subject"]) for edit in said] == [
        ("rome", facts[0].subject),
        ("ft", facts[1].subject),
    ]
    assert said[0]["settings"]["covariance"]["text"] == TEXTS[0].digest
    assert said[0]["model_hash"] == model.hash != said[1]["model_hash"]
    record = json.loads((tmp_path / "change" / "change.json").read_text())
    del record["settings"]  # as earlier versions wrote it
    (tmp_path / "change" / "change.json").write_text(json.dumps(record))
    assert WeightChange.load(tmp_path / "change", model).settings == {}


# --- the run folder ---------------------------------------------------------------------------------


def test_settings_are_settled_once_and_held_against_the_finished_cases(tmp_path: Path) -> None:
    run = RunFolder.open(tmp_path, {}, provenance={"seeds": {}})
    mark = run.settle("x", {"k": 1, "about": {"file": "a"}}, cases=["1"])
    assert mark == run.settle("x", {"k": 1, "about": {"file": "b"}})
    assert run.provenance["settings"] == {"x": {mark: {"k": 1, "about": {"file": "a"}}}}
    second = run.settle("x", {"k": 2}, cases=["1"])  # no case yet
    run.write_case("1", {"made_with": {"x": mark}})
    assert run.settle("x", {"k": 2}, cases=["2"]) == second
    with pytest.raises(InputError, match=r"settings of x in .*'k' is 1 there and 2 now"):
        run.settle("x", {"k": 2}, cases=["1", "2"])
    run.finish({})
    before = (tmp_path / "provenance.json").read_bytes()
    run.settle("x", {"k": 1}, cases=["1"])
    assert run.finished
    assert (tmp_path / "provenance.json").read_bytes() == before
    again = RunFolder.open(tmp_path, {}, provenance={"seeds": {}})
    assert list(again.provenance["settings"]["x"]) == [mark, second]


# --- the command line -------------------------------------------------------------------------------


def test_the_advice_of_the_warning_is_a_command_that_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MECHEDIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    Path("TEXT.txt").write_text("\n\n".join(SENTENCES), encoding="utf-8")
    fact = known_facts()[0]
    for dtype in ("float32", "float64"):
        model = load_model(tiny_folder("gpt2"), dtype=dtype)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            replace(EDITOR, contexts=()).change(model, fact)
        (said,) = [record.getMessage() for record in caplog.records if "no covariance" in record.getMessage()]
        program, *arguments = shlex.split(said[said.index("mechedit covariance") :])
        assert (program, main(arguments)) == ("mechedit", 0)
        taken = resolved(EDITOR, load_model(tiny_folder("gpt2"), dtype=dtype))["covariance"]
        assert taken["about"]["source"] == "TEXT.txt"  # though what the model wrote is longer


def test_one_layer_of_a_covariance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MECHEDIT_CACHE", str(tmp_path / "cache"))
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(SENTENCES), encoding="utf-8")
    place = ["--model", str(tiny_folder("gpt2")), "--text", str(text), "--json"]
    for layers, expected in (("1", [1]), ("0-1", [0, 1])):
        assert main(["covariance", *place, "--layers", layers]) == 0
        rows = json.loads(capsys.readouterr().out)["layers"]
        assert [row["layer"] for row in rows] == expected


def facts_file(folder: Path) -> Path:
    rows = [
        {"case_id": i, "prompt": fact.rewrite_prompt, "subject": fact.subject, "target_new": fact.target_new}
        | {"ground_truth": fact.target_true, "rephrase_prompt": fact.paraphrase_prompts[0]}
        | {"locality_prompt": "Bob speaks", "locality_ground_truth": "Greek"}
        for i, fact in enumerate(known_facts()[:4])
    ]
    (folder / "facts.json").write_text(json.dumps(rows), encoding="utf-8")
    return folder / "facts.json"


def test_a_finished_run_is_extended(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """To the very files of a run that was asked for all of it at once; not to fewer, nor to other facts."""
    facts, run, whole = facts_file(tmp_path), tmp_path / "run", tmp_path / "whole"

    def ask(limit: int | None, out: Path) -> int:
        options = ["--limit", str(limit)] if limit else []
        place = ["--model", str(tiny_folder("gpt2")), "--editor", "ft", "--data", str(facts)]
        place += ["--families", "probability,argmax"]  # a tiny context holds no doubt prompts
        return main(["evaluate", *place, *options, "--out", str(out), "--quiet"])

    assert (ask(2, run), ask(3, whole)) == (0, 0)
    written = {file.name: file.stat().st_mtime_ns for file in (run / "cases").iterdir()}
    assert ask(3, run) == 0
    files = [file.relative_to(whole) for file in whole.rglob("*") if file.is_file() and file.name != ".lock"]
    assert all((run / file).read_bytes() == (whole / file).read_bytes() for file in files)
    assert all((run / "cases" / name).stat().st_mtime_ns == then for name, then in written.items())
    assert ask(None, run) == 0
    assert len(list((run / "cases").iterdir())) == 4
    capsys.readouterr()
    assert ask(2, run) == 2
    assert "'limit' is absent there and 2 now" in capsys.readouterr().err
    rows = json.loads(facts.read_text())
    facts.write_text(json.dumps([rows[1], rows[0], *rows[2:]]), encoding="utf-8")
    assert ask(4, whole) == 2  # others come first
    assert "data.facts" in capsys.readouterr().err


@pytest.mark.parametrize("written", ["nothing", "provenance"])
def test_a_run_that_was_stopped_while_it_was_extended_is_extended(tmp_path: Path, written: str) -> None:
    def data(limit: int) -> dict[str, Any]:
        return {"first": limit}

    RunFolder.open(tmp_path, {"limit": 2, "k": 1}, provenance={"data": data(2)})
    record = json.loads((tmp_path / "provenance.json").read_text())
    if written == "provenance":  # its configuration was still to be written
        (tmp_path / "provenance.json").write_text(json.dumps(record | {"data": data(3)}))
    run = RunFolder.open(tmp_path, {"limit": 3, "k": 1}, provenance={"data": data(3)}, first=data)
    assert (run.config["limit"], run.provenance["data"]) == (3, data(3))
    for config in ({"limit": 4, "k": 2}, {"limit": 4}, {"limit": 4, "k": 1, "new": 1}):
        with pytest.raises(InputError, match=r"'k' is|'new' is"):
            RunFolder.open(tmp_path, config, provenance={"data": data(4)}, first=data)
    with pytest.raises(InputError, match="'limit' is 3 there and 4 now"):
        RunFolder.open(tmp_path, {"limit": 4, "k": 1}, provenance={"data": data(4)})
    with pytest.raises(
        InputError, match=r"'data\.first' is 3 there and 5 now"
    ):  # not the first of the new data
        RunFolder.open(
            tmp_path, {"limit": 4, "k": 1}, provenance={"data": data(4)}, first=lambda limit: data(5)
        )
