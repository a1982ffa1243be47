"""What a notebook shows: plots that display themselves, reprs of one line, tables in words, edits that are named."""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from nbclient import NotebookClient
from PIL import Image
from transformers import AutoModelForCausalLM

import mechedit as me
from mechedit.attribution import Attribution, attribute, attribute_many, contrast, head_attention
from mechedit.editors import EditBook, WeightChange
from mechedit.editors.weights.ft import FT
from mechedit.models.hooked import HookedModel
from reports.attribution_circuit import AttributionCircuit
from reports.circuit import draw, fitted, read
from reports.circuit_shapes import words_of
from reports.errors import InputError
from reports.figures import layer_curve
from reports.plot import Plot, after
from reports.readable import SCORE_MEANS
from tests.test_reports_circuit import crossings


@pytest.fixture(scope="module")
def model() -> HookedModel:
    return me.load_model("factworld")


@pytest.fixture(scope="module")
def attr(model: HookedModel) -> Attribution:
    return attribute(model, "The capital of France is", " Paris", top_k=30)


def png(plot: Plot) -> np.ndarray:
    data = plot._repr_png_()
    assert data.startswith(b"\x89PNG")
    return np.asarray(Image.open(io.BytesIO(data)).convert("L"), dtype=float)


# --------------------------------------------------------------------------------------------- plots


def test_every_plot_shows_itself_and_says_what_of(model: HookedModel, attr: Attribution) -> None:
    difference = contrast(model, "The capital of France is", " Paris", " Madrid", top_k=5)
    drawn = {
        "·Paris after “The capital of France is”, factworld": attr.plot(),
        "·Paris less ·Madrid after “The capital of France is”": difference.plot(),
        "Where heads read ·Paris, “The capital of France is”": head_attention(model, attr, k=2).plot(),
    }
    for title, plot in drawn.items():
        assert " ".join(plot.axes.get_title(loc="left").split()) == title
        assert repr(plot) == f"Plot({title!r})"
        assert png(plot).std() > 5  # something is drawn


def test_that_oracle_can_fail() -> None:
    assert png(Plot(Figure().add_axes((0, 0, 0.001, 0.001)), title=".")).std() < 5


def test_a_plot_is_drawn_into_axes_of_one_s_own_and_saved(attr: Attribution, tmp_path: Path) -> None:
    axes = Figure().subplots()
    plot = attr.plot(axes)
    assert plot.axes is axes
    assert plot.figure is axes.figure
    with Image.open(plot.save(tmp_path / "x.png", columns=1, dpi=100)) as image:
        assert image.size[0] == 330


def test_a_title_of_wide_letters_stays_in_the_figure() -> None:
    """Wrapped by its measured width: a count of letters alone lets the last of a line out."""
    frame = pd.DataFrame({"layer": [0, 1], "module": "attn", "score": [0.1, 2]})
    plot = Plot(layer_curve(frame), title="WWWW " * 30)
    plot.figure.draw_without_rendering()
    left = plot.axes._left_title  # type: ignore[attr-defined]
    assert left.get_window_extent().x1 <= plot.figure.bbox.x1
    left.set_text(" ".join(left.get_text().split()))
    assert left.get_window_extent().x1 > plot.figure.bbox.x1  # the oracle sees one that runs out


def test_several_panels_have_one_title() -> None:
    frame = pd.DataFrame({"layer": [0, 1], "module": "attn", "score": [0.0, 1.0]})
    panels = list(Figure().subplots(1, 2))
    plot = Plot([layer_curve(frame, axes) for axes in panels], title="Two")
    assert plot.axes is panels[0]
    assert plot.figure.get_suptitle() == "Two"


def test_a_long_prompt_is_named_by_its_end() -> None:
    title = after("The " * 100 + "end is")
    assert title.startswith("“…")
    assert title.endswith("end is”")
    assert len(title) < 100


# --------------------------------------------------------------------------------------------- reprs


def test_reprs_are_one_short_line(model: HookedModel, attr: Attribution, tmp_path: Path) -> None:
    fact = me.factworld.edits(1)[0]
    edit = me.editors.MEGA(window=(5, 7), alpha=1.0, gate="always").fit(model, fact)
    book = EditBook.of(model, [edit])
    change = FT(layer=1, steps=1, lr=1e-2).change(model, fact)
    results = attribute_many(model, ["The capital of France is"], [" Paris"], top_k=5, progress=False)
    difference = contrast(model, "The capital of France is", " Paris", " Madrid", top_k=5)
    shown = [attr, difference, edit, book, change, results, attr.circuit(), attr.plot(), model]
    for thing in shown:
        assert "\n" not in repr(thing)
        assert "tensor" not in repr(thing)
        assert len(repr(thing)) < 300, repr(thing)
    assert (
        repr(attr) == "Attribution('·Paris' after 'The capital of France is', factworld: log p -0.0006 nats)"
    )
    assert f"→ {fact.target_new!r}" in repr(edit) and f"→ {fact.target_new!r}" in repr(book)  # noqa: PT018
    assert "provenance" not in repr(head_attention(model, attr, k=1))


@pytest.mark.parametrize("name", ["ft", "mega"])
def test_an_edited_model_names_its_edit_and_so_does_the_model_beneath(model: HookedModel, name: str) -> None:
    fact = me.factworld.edits(1)[0]
    plain = repr(model)
    editor = (
        FT(layer=1, steps=1, lr=1e-2)
        if name == "ft"
        else me.editors.MEGA(window=(5, 7), alpha=1.0, gate="always")
    )
    with editor.apply(model, fact) as edited:
        for held in (edited, model):
            assert f"'{fact.rewrite_prompt}' → {fact.target_new!r}" in repr(held)
        with FT(layer=2, steps=1, lr=1e-2).apply(edited, fact) as twice:
            assert repr(twice).count("edited by") == 2
        assert repr(edited).count("edited by") == 1
    assert repr(model) == plain
    with pytest.raises(ZeroDivisionError), editor.apply(model, fact):
        raise ZeroDivisionError
    assert repr(model) == plain


def test_ike_edits_what_it_yields_alone(model: HookedModel) -> None:
    fact = me.factworld.edits(1)[0]
    with me.editors.by_name("ike").apply(model, fact) as edited:
        assert "behind the prefix" in repr(edited)
        assert "behind" not in repr(model)


# --------------------------------------------------------------------------------------------- tables in words


def test_heads_and_neurons_are_read_in_words(attr: Attribution) -> None:
    heads, neurons = attr.readable(3, "heads"), attr.readable(3)
    assert heads["score"].tolist() == sorted(attr.heads["score"], reverse=True)[:3]
    positions = attr.head_positions
    for row in heads.itertuples():
        own = positions[(positions["layer"] == row.layer) & (positions["head"] == row.head)]
        best = int(own.sort_values("score")["pos"].iloc[-1])
        assert row.reads == attr.tokens[best].replace(" ", "·")
    for row in neurons.itertuples():
        rows = attr.promotes[(attr.promotes["layer"] == row.layer) & (attr.promotes["neuron"] == row.neuron)]
        for side in ("promotes", "demotes"):
            tokens = rows[rows["side"] == side].sort_values("rank")["token"][:3]
            assert getattr(row, side) == " ".join(token.replace(" ", "·") for token in tokens)
    assert [attr.tokens[p].replace(" ", "·") for p in attr.readable(4, "attn_neurons")["pos"]] == list(
        attr.readable(4, "attn_neurons")["token"]
    )


def test_a_cell_shows_heads_and_neurons_before_the_layers(attr: Attribution) -> None:
    shown = attr._repr_html_()
    places = [shown.index(f"<strong>{unit}</strong>") for unit in ("heads", "mlp_neurons", "attn_neurons")]
    assert places == sorted(places)
    assert places[-1] < shown.index("<details>") < shown.index("<strong>layers</strong>")
    assert SCORE_MEANS in shown
    assert attr.readable(1)["promotes"].iloc[0] in shown


def test_many_attributions_are_one_result(model: HookedModel, tmp_path: Path) -> None:
    prompts, targets = ["The capital of France is", "The capital of Spain is"], [" Paris", " Madrid"]
    call: dict[str, Any] = {"top_k": 5, "progress": False}
    listed = attribute_many(model, prompts, targets, **call)
    saved = attribute_many(model, prompts, targets, out=tmp_path / "run", **call)
    for results in (listed, saved):
        frame = results.to_frame()
        assert len(frame) == sum(len(one.to_frame()) for one in results)
        assert frame.groupby("case", observed=True)["target"].first().tolist() == targets
        again = frame[frame["case"] == 1].drop(columns=["case", "prompt", "target"]).reset_index(drop=True)
        assert again.equals(listed[1].to_frame())
        summary = results.summary()
        assert summary["prompt"].tolist() == prompts
        assert summary["logp"].tolist() == [one.logp for one in results]
        head = listed[0].top(1, "heads").iloc[0]
        assert summary["head"][0] == f"{int(head['layer'])}.{int(head['head'])}"
        assert "Madrid" in results._repr_html_()
        assert [one.target_token for one in results[::-1]] == targets[::-1]


# --------------------------------------------------------------------------------------------- what is kept


def test_the_hugging_face_module_saves_itself(model: HookedModel, tmp_path: Path) -> None:
    fact = me.factworld.edits(1)[0]
    ids = model.tokenize(fact.rewrite_prompt)[None]
    with FT(layer=1, steps=2, lr=1e-2).apply(model, fact) as edited:
        edited.hf.save_pretrained(tmp_path / "hf")
        wanted = edited.logits([fact.rewrite_prompt])[0]
        copied = copy.deepcopy(edited.hf)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", attn_implementation="eager")
    assert np.allclose(plain(ids).logits[0, -1].detach(), wanted, atol=1e-4)
    assert not np.allclose(
        plain(ids).logits[0, -1].detach(), model.logits([fact.rewrite_prompt])[0], atol=1e-3
    )
    copied.save_pretrained(tmp_path / "copy")  # the copy's weights: the edit is undone in the model itself
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "copy", attn_implementation="eager")
    assert np.allclose(again(ids).logits[0, -1].detach(), wanted, atol=1e-4)
    with pytest.raises(InputError, match="found push_to_hub too"):
        model.hf.save_pretrained(tmp_path / "new", push_to_hub=True)
    mega = me.editors.MEGA(window=(5, 7), alpha=1.0, gate="always")
    with (
        mega.apply(model, fact) as edited,
        pytest.raises(InputError, match=r"changes no weight.*EditBook\.save"),
    ):
        edited.hf.save_pretrained(tmp_path / "steered")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "hf"]


def test_a_weight_change_is_loaded_like_a_book_of_edits(model: HookedModel, tmp_path: Path) -> None:
    fact = me.factworld.edits(1)[0]
    mega = me.editors.MEGA(window=(5, 7), alpha=1.0, gate="always")
    FT(layer=1, steps=2, lr=1e-2).change(model, fact).save(tmp_path / "change")
    EditBook.of(model, [mega.fit(model, fact)]).save(tmp_path / "book")
    load: list[tuple[Callable[[Path], Any], str]] = [(WeightChange.load, "change"), (EditBook.load, "book")]
    plain = model.logits([fact.rewrite_prompt])
    for loaded, name in load:
        kept = loaded(tmp_path / name)
        with kept.apply(model) as edited:
            assert not np.allclose(edited.logits([fact.rewrite_prompt]), plain)
        with pytest.raises(InputError, match="hash"), kept.apply(me.load_model("factworld-llama")):
            pass
    with pytest.raises(InputError, match=r"which EditBook\.load reads"):
        WeightChange.load(tmp_path / "book")
    with pytest.raises(InputError, match=r"which WeightChange\.load reads"):
        EditBook.load(tmp_path / "change")
    change = WeightChange.load(tmp_path / "change")
    with change.apply(model) as edited, pytest.raises(InputError, match="was made for"):
        change.apply(edited)  # an edited model is another one


# --------------------------------------------------------------------------------------------- a real kernel


BARE = "import sys, warnings; sys.modules['ipywidgets'] = None; warnings.simplefilter('always')"


def run(cells: list[str], folder: Path) -> list[nbformat.NotebookNode]:
    """The cells, run in a kernel that has no ipywidgets."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in (BARE, *cells)])
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources).execute()
    return list(notebook.cells[1:])


def warned(cells: list[nbformat.NotebookNode]) -> str:
    outputs = [output for cell in cells for output in cell.outputs if output.output_type == "stream"]
    return "".join(output.text for output in outputs if "Warning" in output.text)


@pytest.mark.filterwarnings("default")  # of the kernel's own machinery
def test_a_notebook_without_ipywidgets_is_warned_of_nothing_and_shows_everything(root: Path) -> None:
    """The first notebook, from a clean kernel, and every public name."""
    notebook = nbformat.read(root / "experiments" / "notebooks" / "1_attribute_a_fact.ipynb", as_version=4)
    sources = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    cells = run([*sources, "[getattr(me, name) for name in me.__all__]"], root)
    assert warned(cells) == ""
    kinds = {
        source.splitlines()[-1]: set(cell.outputs[-1].data) - {"text/plain"}
        for source, cell in zip(sources[1:], cells[1:], strict=False)
    }
    assert kinds["found"] == kinds["found.circuit(max_units=20)"] == {"text/html"}
    assert kinds["found.plot()"] == {"image/png"}
    assert "<svg" in cells[sources.index("found.circuit(max_units=20)")].outputs[-1].data["text/html"]


@pytest.mark.filterwarnings("default")
def test_a_bar_that_is_loaded_elsewhere_would_warn(root: Path) -> None:
    """The oracle of the test above."""
    assert "IProgress not found" in warned(run(["import tqdm.auto"], root))


def test_the_circuit_of_an_attribution_is_an_object(attr: Attribution, tmp_path: Path) -> None:
    circuit = attr.circuit()
    assert isinstance(circuit, AttributionCircuit)
    assert AttributionCircuit.load(circuit.save(tmp_path / "c.json")) == json.loads(json.dumps(circuit))
    heads = circuit.nodes[circuit.nodes["kind"] == "head"].set_index("id")["score"]
    for row in attr.heads.itertuples():
        if f"head:{row.layer}.{row.head}" in heads:
            assert heads[f"head:{row.layer}.{row.head}"] == row.score


@pytest.mark.real
@pytest.mark.parametrize(
    ("prompt", "target"),
    [
        ("The Eiffel Tower is located in the city of", " Paris"),
        ("The mother tongue of Danielle Darrieux is", " French"),
        ("2 + 2 = ", "4"),
    ],
)
def test_circuits_of_a_real_model_are_drawn_and_fit(
    smollm2: HookedModel, prompt: str, target: str, tmp_path: Path
) -> None:
    attr = attribute(smollm2, prompt, target)
    circuit = attr.circuit()
    assert circuit["share"] < circuit["share_asked"]
    assert "max_units = 40 reached first" in repr(circuit)
    graph = read(circuit)
    for drawing in (draw(graph), *(fitted(graph, columns) for columns in (1, 2))):
        assert crossings(drawing) == []
        words = " ".join(words.text for words in words_of(drawing.shapes))
        assert f"hold {circuit.share:.0%} of their |score|" in " ".join(words.split())
    for kind in ("svg", "pdf", "png"):
        assert circuit.save(tmp_path / f"c.{kind}").stat().st_size > 10_000
    best = attr.readable(1, "heads").iloc[0]
    assert best["reads"].replace("·", " ").strip() in prompt
