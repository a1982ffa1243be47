"""Every figure against a picture of it from before: 32 × 20 cells of mean colour, kept as text, with a tolerance.

After a change that is meant, `MECHEDIT_WRITE_IMAGES=1 pytest tests/test_reports_images.py` writes them anew: look
at the figures first. A figure of other data must not match, for each of them.
"""

from __future__ import annotations

import base64
import inspect
import io
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from PIL import Image

from reports import anatomy_figures, figures, forests, gates, look, xl_figures
from reports.errors import InputError
from tests import reports_example as example

STORE = Path(__file__).with_name("reports_images.json")
CELLS = (32, 20)
TOLERANCE = 1.5  # root mean square over cells and channels, of 255: another freetype moves a letter by less


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def scaled(frame: pd.DataFrame, seed: int, *columns: str) -> pd.DataFrame:
    """The frame for seed 0, else another of the same shape."""
    if not seed:
        return frame
    moved = frame.copy()
    for name in columns:
        moved[name] = np.roll(frame[name].to_numpy(), 7) * (-1 if name == "score" else 1)
    return moved


def curves(seed: int, **more: list[str]) -> pd.DataFrame:
    """layer, module, difference with an interval, for each combination of `more`."""
    keys = {"module": ["attn", "mlp"], **more}
    grid = pd.MultiIndex.from_product([*keys.values(), range(8)], names=[*keys, "layer"]).to_frame(
        index=False
    )
    value = noise(seed, len(grid))
    return grid.assign(difference=value, low=value - 0.5, high=value + 0.5)


def effects(seed: int, panel: str = "panel", label: str = "label") -> pd.DataFrame:
    names = pd.MultiIndex.from_product([("first", "second"), list("abcde")], names=[panel, label])
    value = noise(seed, 10)
    return names.to_frame(index=False).assign(value=value, low=value - 0.6, high=value + 0.6)


def fractions(seed: int, **more: list[str]) -> pd.DataFrame:
    keys = {"panel": ["Acc", "Gen", "Spec"], **more, "label": ["a", "b", "c"]}
    grid = pd.MultiIndex.from_product(list(keys.values()), names=list(keys)).to_frame(index=False)
    value = np.random.default_rng(seed).uniform(0.2, 0.8, len(grid))
    return grid.assign(value=value, low=value - 0.1, high=value + 0.1)


def overlap(seed: int) -> pd.DataFrame:
    shares = np.random.default_rng(seed).uniform(size=3)
    return pd.DataFrame({"a": ["ft", "ft", "rome"], "b": ["rome", "mega", "mega"], "overlap": shares})


def roc(seed: int) -> pd.DataFrame:
    parts = []
    for i, name in enumerate(("hidden", "text")):
        x = np.linspace(0, 1, 20)
        parts.append(
            pd.DataFrame({"gate": name, "false_rate": x, "true_rate": x ** (0.1 + 0.3 * i + 0.4 * seed)})
        )
    return pd.concat(parts)


def distances(seed: int) -> pd.DataFrame:
    names = (["cosine", "cka"], ["before", "after"], range(7))
    grid = pd.MultiIndex.from_product(names, names=["metric", "stage", "layer"]).to_frame(index=False)
    gap = np.abs(noise(seed, len(grid)))
    return grid.assign(gap=gap, low=gap - 0.2, high=gap + 0.2)


def norms(seed: int) -> pd.DataFrame:
    steps = pd.DataFrame({"step": [0, 10, 20, 30] * 2, "line": ["tlm"] * 4 + ["l2"] * 4})
    return steps.assign(ratio=np.exp(noise(seed, 8)))


def cosines(seed: int) -> pd.DataFrame:
    names = (range(1, 5), ["query", "key", "value", "ffn_in"])
    grid = pd.MultiIndex.from_product(names, names=["layer", "group"]).to_frame(index=False)
    return grid.assign(cosine=noise(seed, 16) / 3)


def outcomes(seed: int) -> pd.DataFrame:
    grid = pd.MultiIndex.from_product(
        [["tlm", "l2"], ["pos", "topic"], range(4)], names=["objective", "task", "i"]
    )
    x, y = noise(seed, 2, 16)
    return grid.to_frame(index=False).assign(x=x, delta_score=y, low=y - 0.3, high=y + 0.3)


def angles(seed: int) -> pd.DataFrame:
    layers, cosine = range(1, 7), noise(seed, 6) / 3
    useful = {"task_halves": 0.8, "source_target": 0.6, "bound": 0.2, "panel": "a"}
    return pd.DataFrame(
        {"layer": layers, "cosine": cosine, "low": cosine - 0.1, "high": cosine + 0.1}
    ).assign(**useful)


def predictors(seed: int) -> pd.DataFrame:
    rho = noise(seed, 4) / 3
    frame = pd.DataFrame({"label": list("abcd"), "spearman": rho, "low": rho - 0.2, "high": rho + 0.2})
    return frame.assign(partial=-rho, partial_low=-rho - 0.3, partial_high=-rho + 0.3)


DRAWN: dict[str, Callable[[int], Axes]] = {
    "layer_curve": lambda s: figures.layer_curve(
        scaled(example.contrast().query("module == 'attn'"), s, "score")
    ),
    "layer_panels": lambda s: figures.layer_panels(scaled(example.contrast(), s, "score"), window=(5, 7))[0],
    "head_heatmap": lambda s: figures.head_heatmap(scaled(example.heads(), s, "score")),
    "token_heatmap": lambda s: figures.token_heatmap(
        scaled(example.looks()["token_heat"], s, "score"), example.circuit()["tokens"]
    ),
    "window_strip": lambda s: figures.window_strip(scaled(example.windows(), s, "score"), (5, 7)),
    "neuron_bar": lambda s: figures.neuron_bar(scaled(example.neurons(), s, "score")),
    "butterfly": lambda s: figures.butterfly(scaled(example.neurons(), s, "score")),
    "forest": lambda s: forests.forest(effects(s).query("panel == 'first'")),
    "forest_panels": lambda s: forests.forest_panels(fractions(s))[0],
    "paired_forest": lambda s: forests.paired_forest(fractions(s, run=["x", "y"]))[0],
    "effect_forest": lambda s: forests.effect_forest(effects(s))[0],
    "roc_curve": lambda s: gates.roc_curve(roc(s)),
    "difference_curve": lambda s: anatomy_figures.difference_curve(curves(s)),
    "difference_panels": lambda s: anatomy_figures.difference_panels(curves(s, object=["new", "old"]))[0],
    "editor_grid": lambda s: anatomy_figures.editor_grid(curves(s, editor=["a", "b"], object=["new", "old"]))[
        0
    ],
    "overlap_heatmap": lambda s: anatomy_figures.overlap_heatmap(overlap(s)),
    "success_forest": lambda s: anatomy_figures.success_forest(effects(s, "claim", "editor"))[0],
    "distance_curves": lambda s: xl_figures.distance_curves(distances(s))[0],
    "norm_curves": lambda s: xl_figures.norm_curves(norms(s)),
    "loss_curve": lambda s: xl_figures.loss_curve(
        pd.DataFrame({"step": range(60), "loss": 3 + noise(s, 60).cumsum()})
    ),
    "cosine_heatmap": lambda s: xl_figures.cosine_heatmap(cosines(s)),
    "outcome_scatter": lambda s: xl_figures.outcome_scatter(outcomes(s), x="x"),
    "angle_layers": lambda s: xl_figures.angle_layers(angles(s))[0],
    "predictor_forest": lambda s: xl_figures.predictor_forest(predictors(s)),
}


def cells(name: str, seed: int, folder: Path) -> np.ndarray:
    file = look.save(DRAWN[name](seed), folder / f"{name}{seed}.png", dpi=60)
    small = Image.open(file).convert("RGB").resize(CELLS, Image.Resampling.BOX)
    return np.asarray(small, dtype=float)


def stored(name: str) -> np.ndarray:
    data = base64.b64decode(json.loads(STORE.read_text(encoding="utf-8"))[name])
    return np.frombuffer(data, dtype=np.uint8).reshape(CELLS[1], CELLS[0], 3).astype(float)


def apart(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.sqrt(np.mean((a - b) ** 2)))


@pytest.mark.parametrize("name", DRAWN)
def test_a_figure_looks_as_before_and_other_data_do_not(name: str, tmp_path: Path) -> None:
    found = cells(name, 0, tmp_path)
    if os.environ.get("MECHEDIT_WRITE_IMAGES"):
        known = json.loads(STORE.read_text(encoding="utf-8")) if STORE.is_file() else {}
        known[name] = base64.b64encode(found.astype(np.uint8).tobytes()).decode()
        STORE.write_text(json.dumps(dict(sorted(known.items())), indent=0) + "\n", encoding="utf-8")
    assert apart(found, stored(name)) <= TOLERANCE
    assert apart(cells(name, 1, tmp_path), stored(name)) > 2 * TOLERANCE


def test_every_figure_has_a_picture() -> None:
    modules = (figures, forests, gates, anatomy_figures, xl_figures)
    public = {
        name for module in modules for name in module.__all__ if inspect.isfunction(getattr(module, name))
    }
    assert public - {"gates"} == set(DRAWN) == set(json.loads(STORE.read_text(encoding="utf-8")))


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
@pytest.mark.parametrize("columns", [1, 2])
def test_a_saved_figure_has_the_papers_width_and_the_same_bytes(
    kind: str, columns: int, tmp_path: Path
) -> None:
    axes = DRAWN["layer_panels"](0)
    size = axes.get_figure(root=True).get_size_inches().tolist()  # type: ignore[union-attr]
    first = look.save(axes, tmp_path / f"a.{kind}", columns=columns).read_bytes()
    assert axes.get_figure(root=True).get_size_inches().tolist() == size  # type: ignore[union-attr]
    assert look.save(DRAWN["layer_panels"](0), tmp_path / f"b.{kind}", columns=columns).read_bytes() == first
    assert look.save(DRAWN["layer_panels"](1), tmp_path / f"c.{kind}", columns=columns).read_bytes() != first
    width = look.WIDTHS[columns]
    if kind == "png":
        assert Image.open(io.BytesIO(first)).size[0] == round(300 * width)
    elif kind == "svg":
        assert f'width="{72 * width:g}pt"'.encode() in first
        assert b"<text" in first
        assert b"<dc:date>" not in first
    else:
        assert b"/FontFile2" in first  # TrueType, embedded (type 42)
        assert b"/CreationDate" not in first


@pytest.mark.parametrize(
    ("name", "columns", "match"), [("a.gif", None, r"\.png, \.svg or \.pdf"), ("a.png", 3, "1 or 2")]
)
def test_other_files_and_widths_are_refused(
    name: str, columns: int | None, match: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=match):
        look.save(DRAWN["forest"](0), tmp_path / name, columns=columns)
    assert list(tmp_path.iterdir()) == []
