"""The page of one attribution, of a difference, and of a folder of prompts, from their files alone."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path

import pytest

import mechedit as me
from mechedit.attribution import Attribution, attribute, attribute_many, contrast
from mechedit.cli import main
from mechedit.models.hooked import HookedModel
from reports import attribution_page, batch, overview
from reports.errors import InputError, IntegrityError

PROMPTS = ["The capital of France is", "The capital of Spain is", "The capital of Japan is"]
TARGETS = [" Paris", " Madrid", " Tokyo"]


@pytest.fixture(scope="module")
def model() -> HookedModel:
    return me.load_model("factworld")


@pytest.fixture(scope="module")
def saved(model: HookedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one attribution, a difference, and a run of three prompts."""
    folder = tmp_path_factory.mktemp("saved")
    attribute(model, PROMPTS[0], TARGETS[0], top_k=40).save(folder / "one")
    contrast(model, PROMPTS[0], TARGETS[0], TARGETS[1], top_k=40).save(folder / "difference")
    attribute_many(model, PROMPTS, TARGETS, top_k=40, out=folder / "many", progress=False)
    return folder


def text(page: str) -> str:
    """What a reader of the page reads."""
    body = re.sub(r"<(script|style)\b.*?</\1>", "", page, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", body)).split())


def test_one_attribution_has_a_page(saved: Path) -> None:
    attr = Attribution.load(saved / "one")
    page = attribution_page.render(saved / "one")
    read = text(page)
    assert "·Paris after “The capital of France is”" in read
    assert f"log p {attr.logp:.4f} = embedding {attr.embedding_logp:.4f}" in read
    for row in attr.readable(15).itertuples():
        assert f"{row.layer} {row.neuron} {row.score:+.3f}".replace("-", "−") in read
        assert all(token in read for token in row.promotes.split(" "))
    for row in attr.readable(3, "heads").itertuples():
        assert f"{row.layer} {row.head} {row.score:+.3f} {row.reads}".strip() in read
    circuit = attr.circuit()
    assert f"{circuit['units']} of {circuit['units_total']} scored units" in read
    assert all(f'"id":"{node["id"]}"' in page for node in circuit["nodes"])
    assert page == attribution_page.render(saved / "one")
    assert not re.search(r"""(?:src|href)=["']?https?:""", page)


def test_a_difference_has_a_page_without_a_circuit(saved: Path) -> None:
    read = text(attribution_page.render(saved / "difference"))
    assert "·Paris less ·Madrid after “The capital of France is”" in read
    assert "score: a − b" in read
    assert "One circuit" not in read


def test_a_folder_of_prompts_has_a_page(saved: Path, model: HookedModel) -> None:
    page = attribution_page.render(saved / "many")
    read = text(page)
    results = attribute_many(model, PROMPTS, TARGETS, top_k=40, progress=False)
    for i, row in enumerate(results.summary().itertuples()):
        logp = f"{row.logp:+.3f}".replace("-", "−")
        assert f"{i} {row.prompt} {row.target} {logp}" in read
        assert f"{row.layer} {row.head} {row.neuron} {row.promotes}" in read
        assert f'href="#prompt-{i}"' in page
        assert f'id="prompt-{i}"' in page
    assert page.count('class="circuit"') == 3
    mean = sum(one.layers["score"].to_numpy() for one in results) / 3
    largest = f"{mean[abs(mean).argmax()]:+.3f}".replace("-", "−")
    assert f", {largest} nats." in read
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(set(ids)) == len(ids)


def test_neurons_are_shared_where_several_prompts_have_them_among_their_best(saved: Path) -> None:
    records = attribution_page.read_prompts(saved / "many")
    shared = attribution_page._shared(records)
    assert shared is not None
    best = [
        set(zip(*[r.mlp_neurons.nlargest(15, "score")[c] for c in ("layer", "neuron")], strict=True))
        for r in records
    ]
    for row in shared["rows"]:
        layer, neuron, n = (int(row[i]["text"]) for i in range(3))
        assert sum((layer, neuron) in one for one in best) == n > 1
    assert attribution_page._shared(records[:1]) is None


def test_an_unfinished_folder_shows_what_is_done(saved: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "cases").mkdir(parents=True)
    for name in ("config.toml", "provenance.json", "cases/0.json", "cases/2.json"):
        (run / name).write_bytes((saved / "many" / name).read_bytes())
    assert "Attribution of 2 of 3 prompts" in text(attribution_page.render(run))
    assert overview.state(run)[0] == "unfinished"
    (run / "cases" / "2.json").write_text(json.dumps({"kind": "attribution", "values": {}, "frames": {}}))
    with pytest.raises(IntegrityError, match=r"2\.json: expected a field 'ids'"):
        attribution_page.render(run)
    for file in (run / "cases").iterdir():
        file.unlink()
    with pytest.raises(InputError, match="found none"):
        attribution_page.render(run)


def test_a_damaged_attribution_is_named(saved: Path, tmp_path: Path) -> None:
    folder = Attribution.load(saved / "one").save(tmp_path / "one")
    (folder / "heads.parquet").unlink()
    with pytest.raises(IntegrityError, match=r"expected heads\.parquet"):
        attribution_page.render(folder)


def test_report_writes_them_and_an_index_over_all(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(saved / "one")]) == 0
    assert capsys.readouterr().out.strip() == str(saved / "one" / "report.html")
    made = batch.build([saved], saved / "index.html", progress=False)
    assert {entry.name: entry.state for entry in made.entries} == {
        "difference": "complete",
        "many": "complete",
        "one": "complete",
    }
    read = text((saved / "index.html").read_text(encoding="utf-8"))
    assert "·Paris after “The capital of France is”" in read
    assert "3 prompts" in read
    # a result whose page lies beside it can be saved over, and loaded
    attr = Attribution.load(saved / "one")
    attr.save(saved / "one")
    assert not (saved / "one" / "report.html").exists()


def test_attribute_says_where_it_saved_and_what_scores_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call = ["attribute", "--model", "factworld", "--prompt", PROMPTS[0], "--target", "Paris", "--top-k", "20"]
    drawn = tmp_path / "circuit.pdf"
    assert main([*call, "--out", str(tmp_path / "saved"), "--circuit", str(drawn)]) == 0
    assert drawn.read_bytes().startswith(b"%PDF-")
    out = capsys.readouterr().out
    assert "score: nats that the unit alone adds to log p of the target" in out
    assert f"page: mechedit report {tmp_path / 'saved'}" in out
    attr = Attribution.load(tmp_path / "saved")
    assert attr.readable(1)["promotes"].iloc[0] in out
    assert attr.readable(1, "heads")["reads"].iloc[0] in out
    assert main(["report", str(tmp_path / "saved")]) == 0  # the advice is a command that works
    assert (tmp_path / "saved" / "report.html").is_file()
    assert main([*call, "--circuit", "circuit.gif"]) == 2
    assert main([*call, "--contrast", "Madrid", "--circuit", str(drawn)]) == 2
    told = capsys.readouterr().err
    assert ".svg, .pdf" in told
    assert "--contrast takes no --circuit" in told


def test_two_prompts_that_were_aligned_have_a_page_that_names_no_token_of_one(
    model: HookedModel, tmp_path: Path
) -> None:
    a, b = (attribute(model, PROMPTS[i], TARGETS[i], top_k=20) for i in range(2))
    difference = contrast(a, b, align="position")
    assert "token" not in difference.readable(3, "attn_neurons")
    read = text(attribution_page.render(difference.save(tmp_path / "aligned")))
    assert "aligned by position" in read
    assert "·France" not in read
    assert "aligned by position" in " ".join(difference.plot().axes.get_title(loc="left").split())
