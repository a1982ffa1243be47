"""The pages of facts: of an evaluation one by one, of two editors paired, of one edit; each from files alone."""

from __future__ import annotations

import math
import random
import re
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from mechedit.anatomy.explain import explain
from mechedit.cli import main as mechedit_main
from mechedit.data.facts import FactEdit
from mechedit.editors import FT, NoEdit
from mechedit.evaluation.evaluate import evaluate
from mechedit.factworld import edits
from mechedit.models.hooked import HookedModel, load_model
from reports import batch, compare, fact_table, overview, page, paired
from reports.errors import IntegrityError
from reports.intervals import bootstrap_mean, difference_interval
from reports.text import visible
from tests import reports_example as example
from tests.test_reports_batch import words, write
from tests.test_reports_page import Outline, addresses

N = 4
TEXTS = ("answer", "base_answer", "prompt", "old", "new")  # what earlier versions did not keep


@pytest.fixture(scope="module")
def model() -> HookedModel:
    return load_model("factworld")


@pytest.fixture(scope="module")
def facts() -> list[FactEdit]:
    return list(edits(N))


@pytest.fixture(scope="module")
def runs(
    tmp_path_factory: pytest.TempPathFactory, model: HookedModel, facts: list[FactEdit]
) -> dict[str, Path]:
    """A run of each editor on the same facts, the last fact of the first one without an edit that works."""
    root = tmp_path_factory.mktemp("facts")
    for editor in (FT(), NoEdit()):
        write(root / editor.name, acc=20, label=editor.name)
        result = evaluate(model, editor, facts, progress=False)
        result.save(root / editor.name / "results" / "evaluation")
    return {name: root / name for name in ("ft", "no_edit")}


def aged(run: Path, folder: Path) -> Path:
    """The run as an earlier version would have left it."""
    write(folder, acc=20)
    saved = folder / "results" / "evaluation"
    saved.mkdir(parents=True)
    source = run / "results" / "evaluation"
    (saved / "result.json").write_bytes((source / "result.json").read_bytes())
    for name in ("cases", "records", "prompts"):
        frame = pd.read_parquet(source / f"{name}.parquet")
        later = TEXTS if name == "cases" else TEXTS[:2]
        frame.drop(columns=[column for column in later if column in frame]).to_parquet(
            saved / f"{name}.parquet"
        )
    return folder


# -- what is said before and after ---------------------------------------------------------------------------------


def test_answers_are_what_greedy_decoding_writes(
    runs: dict[str, Path], model: HookedModel, facts: list[FactEdit]
) -> None:
    rows = fact_table.read(runs["ft"])
    assert [row.case_id for row in rows] == [str(fact.case_id) for fact in facts]
    prompts = [fact.rewrite_prompt for fact in facts]
    before = model.generate(prompts, max_new_tokens=8)
    for i, (row, fact) in enumerate(zip(rows, facts, strict=True)):
        with FT().apply(model, [fact]) as edited:
            after = edited.generate([fact.rewrite_prompt], max_new_tokens=8)[0]
        assert before[i].strip().startswith(row.before)
        assert after.strip().startswith(row.after)
        assert (row.before, row.after, row.old, row.new) == (
            fact.target_true,
            fact.target_new,
            fact.target_true,
            fact.target_new,
        )
        assert not before[(i + 1) % N].strip().startswith(row.before)  # the oracle tells answers apart


def test_every_prompt_and_score_stands_in_the_table(runs: dict[str, Path], facts: list[FactEdit]) -> None:
    text = page.render(runs["ft"])
    outline = Outline(text)
    assert outline.faults == []
    assert addresses(text) == []
    seen = words(text)
    records = pd.read_parquet(runs["ft"] / "results" / "evaluation" / "records.parquet")
    for i, fact in enumerate(facts):
        own = records[records["case_id"] == str(fact.case_id)].set_index("metric")
        counts = " ".join(
            f"{round(own.loc[name, 'value'] * own.loc[name, 'n_prompts'])}/{own.loc[name, 'n_prompts']}"
            for name in ("Acc", "Gen", "Spec")
        )
        objects = f"{fact.target_true} {fact.target_new}"
        assert f"{fact.rewrite_prompt} {objects} {objects} {counts}" in seen
        assert f'href="#fact-{i}"' in text
        assert f'id="fact-{i}"' in text
        for prompt in (*fact.paraphrase_prompts, *fact.neighborhood_prompts):
            assert prompt in seen
    assert "Gate" not in seen  # FT has none


def test_the_table_needs_no_script_and_says_what_went_amiss(runs: dict[str, Path]) -> None:
    bare = re.sub(r"<script>.*?</script>", "", page.render(runs["no_edit"]), flags=re.DOTALL)
    assert words(bare).count("not edited, paraphrases missed") == 2 * N  # in the table, and over its prompts
    rows = fact_table.read(runs["no_edit"])
    assert all(row.after == row.before for row in rows)


def test_a_gate_is_counted_on_own_and_foreign_prompts() -> None:
    prompts: list[dict[str, Any]] = [
        {"role": role, "prompt": role, "gate_fired": fired, "p_new": 0.5, "p_true": math.nan}
        for role, fired in (
            ("rewrite", True),
            ("paraphrase", True),
            ("paraphrase", False),
            ("neighborhood", False),
        )
    ]
    fact = fact_table.EditedFact(
        "mega", "1", "Ann", "Ann is", "a", "b", True, "a", "b", {"Acc": (1.0, 1)}, math.nan, prompts
    )
    section = fact_table.facts([fact])
    assert section is not None
    assert section["gate"]
    assert section["rows"][0]["gate"] == {"rewrite": "open", "rest": ["own 1/2", "foreign 0/1"]}
    assert fact_table.facts([]) is None


def test_a_run_of_an_earlier_version_still_opens(runs: dict[str, Path], tmp_path: Path) -> None:
    old = aged(runs["ft"], tmp_path / "old")
    seen = words(page.render(old))
    for row in fact_table.read(old):
        new = next(fact for fact in fact_table.read(runs["ft"]) if fact.case_id == row.case_id)
        assert row.prompt == new.prompt
        assert row.before == row.old
        assert new.old.startswith(row.old)  # the tokens that decide
        assert new.after.startswith(row.after)
        assert row.prompt in seen
    (old / "results" / "evaluation" / "prompts.parquet").unlink()
    with pytest.raises(IntegrityError, match=r"prompts\.parquet"):
        page.render(old)


def test_hostile_facts_are_text(runs: dict[str, Path], tmp_path: Path) -> None:
    bad = "".join(example.HOSTILE)
    run = aged(runs["ft"], tmp_path / "bad")
    saved = run / "results" / "evaluation"
    for name in ("cases", "prompts"):
        frame = pd.read_parquet(saved / f"{name}.parquet")
        columns = (
            ["prompt", "old", "new", "subject"] if name == "cases" else ["prompt", "answer", "base_answer"]
        )
        frame.assign(**dict.fromkeys(columns, bad)).to_parquet(saved / f"{name}.parquet")
    failed = shutil.copytree(run, tmp_path / "failed")
    records = pd.read_parquet(saved / "records.parquet")
    records.assign(value=0.0).to_parquet(failed / "results" / "evaluation" / "records.parquet")
    for text in (page.render(run), compare.render(run, failed)):
        outline = Outline(text)
        assert outline.faults == []
        assert sum(word == visible(bad) for word in outline.words) > N
        assert not [name for _, attributes in outline.tags for name in attributes if name.startswith("on")]


def test_one_editor_has_no_chart_and_two_have_one(tmp_path: Path) -> None:
    assert "Chart of scores" not in page.render(write(tmp_path / "one", acc=20))
    editors = [{"name": name, "acc": example.proportion(20)} for name in "ab"]
    assert "Chart of scores" in page.render(write(tmp_path / "two", acc=20, editors=editors))


# -- two editors ---------------------------------------------------------------------------------------------------


def made_up(values: list[float], *, editor: str = "a", metric: str = "Gen") -> list[fact_table.EditedFact]:
    return [
        fact_table.EditedFact(
            editor,
            str(i),
            "s",
            f"p{i}",
            "o",
            "n",
            True,
            "o",
            "n",
            {"Acc": (1.0, 1), metric: (v, 4)},
            math.nan,
            (),
        )
        for i, v in enumerate(values)
    ]


def test_differences_against_a_naive_paired_bootstrap() -> None:
    draw = random.Random(1)
    hard = [draw.choice([0.0, 0.25, 0.5, 0.75]) for _ in range(60)]
    first, second = made_up(hard), made_up([v + draw.choice([0.0, 0.25]) for v in hard], editor="b")
    found = {row.metric: row for row in paired.differences(list(zip(first, second, strict=True)))}["Gen"]
    gains = [b.scores["Gen"][0] - a.scores["Gen"][0] for a, b in zip(first, second, strict=True)]
    means = sorted(sum(draw.choice(gains) for _ in gains) / len(gains) for _ in range(4000))
    assert found.value == pytest.approx(sum(gains) / 60)
    assert (found.better, found.worse, found.n) == (sum(g > 0 for g in gains), 0, 60)
    assert found.low == pytest.approx(means[100], abs=0.015)
    assert found.high == pytest.approx(means[3900], abs=0.015)
    # as if the runs were independent the interval would be far wider: the oracle tells them apart
    sides = [
        (sum(v) / 60, *bootstrap_mean(v)) for v in ([f.scores["Gen"][0] for f in s] for s in (first, second))
    ]
    low, _ = difference_interval(sides[0], sides[1])
    assert low < means[100] - 0.03


def test_only_shared_and_known_facts_are_paired() -> None:
    first, second = made_up([0.0, 0.5, 1.0]), made_up([1.0, 1.0], editor="b")
    pair = paired.paired(first, second, prefix="x")
    assert pair is not None
    assert (pair["shared"], pair["known"], pair["alone"]) == (2, 2, [1, 0])
    assert [row["n"] for row in pair["rows"] if row["metric"] == "Gen"] == [2]
    assert [line["prompt"] for line in pair["elsewhere"]] == ["p0", "p1"]
    elsewhere = [fact_table.EditedFact(**{**vars(fact), "prompt": "another"}) for fact in second]
    assert paired.paired(first, elsewhere, prefix="x") is None


def test_a_comparison_of_two_editors_pairs_facts_and_lists_what_one_gets(
    runs: dict[str, Path], facts: list[FactEdit], tmp_path: Path
) -> None:
    text = compare.render(runs["no_edit"], runs["ft"])
    assert Outline(text).faults == []
    seen = words(text)
    assert f"0 are edited by both, 0 by neither, 0 by no_edit alone, {N} by ft alone" in seen
    assert "Acc 0.0 100.0 +100.0 +100.0 – +100.0 4 4 0 0" in seen
    assert "ft less no_edit" in seen
    listed = seen[seen.index("Edited by ft alone", seen.index("Paired by fact")) :]
    for fact in facts:
        assert f"{fact.rewrite_prompt} {fact.target_true} {fact.target_new} {fact.target_true}" in listed
    assert "Edited by no_edit alone" not in seen
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    old = words(compare.render(runs["no_edit"], aged(runs["ft"], tmp_path / "old")))
    assert f"{N} by ft alone" in old


# -- the index, and one edit ---------------------------------------------------------------------------------------


def test_the_index_has_a_picture_and_few_columns_at_once(tmp_path: Path) -> None:
    keys = ("acc", "gen", "spec", "mean", "es", "ps", "ns", "s", "di", "dii")
    for name in "ab":
        editor: dict[str, Any] = {"name": name} | {key: example.proportion(20) for key in keys}
        write(tmp_path / name, acc=1, editors=[editor])
    text = batch.build([tmp_path], tmp_path / "index.html", progress=False).index.read_text(encoding="utf-8")
    heads = [
        re.findall(r"<button[^>]*>(.*?)</button>", head) for head in re.findall(r"<thead>.*?</thead>", text)
    ]
    assert [len(head) for head in heads] == [9, 7]
    assert {"Acc", "DII"} <= {name for head in heads for name in head}
    assert text.count("<svg") == 1
    assert Outline(text).faults == []


def test_one_edit_has_a_page_and_a_line_in_the_index(
    model: HookedModel, facts: list[FactEdit], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    why = explain(model, FT(), facts[0])
    why.save(tmp_path / "edit")
    assert mechedit_main(["report", str(tmp_path / "edit"), "--json"]) == 0
    capsys.readouterr()
    text = (tmp_path / "edit" / "report.html").read_text(encoding="utf-8")
    assert Outline(text).faults == []
    assert addresses(text) == []
    seen = words(text)
    for row in why.texts.to_dict("records"):
        assert visible(row["prompt"]) in seen
        assert visible(row["after"]).strip() in seen
    best = why.helped(k=1).iloc[0]
    assert f"{best['unit']} {best['before']:+.2f}".replace("-", "−") in seen
    line = overview.read(tmp_path / "edit")
    assert (line.kind, line.model) == ("explanation", "factworld")
    ok = why.texts[why.texts["role"] == "paraphrase"]["ok"]
    assert dict(line.rows)[f"{line.title} (ft)"]["Paraphrase"].value == pytest.approx(100 * ok.mean())
    why.save(tmp_path / "edit")  # again: the page is no foreign file
    (tmp_path / "edit" / "units.parquet").unlink()
    with pytest.raises(IntegrityError, match=r"units\.parquet"):
        overview.render(tmp_path / "edit")
