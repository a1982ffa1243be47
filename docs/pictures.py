"""The guide's pictures, made by the library: `python docs/pictures.py [NAME ...] [--run RUN]`, into docs/pictures/.

`make pictures` makes all. Those of the guide's pages on edits are drawn from RUN, which `make demo-real` writes; one on
batch reports is a picture of a page and needs Chromium. The real model is SmolLM2 (extra `real`).
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

import mechedit as me
import xlprobe as xl
from mechedit.attribution.passes import run_passes
from mechedit.attribution.ranking.certified import _bounds, _Search
from mechedit.attribution.ranking.suppress_bound import vocabulary_moments
from mechedit.models.hooked import HookedModel
from reports import batch, figures, formats, look
from reports.colours import LIGHT
from reports.page import read_summary
from reports.reading import read_frame

HERE = Path(__file__).resolve().parent / "pictures"
PROMPT, TARGET = "The capital of France is", "Paris"


@cache
def smollm2() -> HookedModel:
    """The real model, loaded once."""
    return me.load_model("smollm2")


def attribution(run: Path) -> None:
    """Layers of SmolLM2 by what they add to log p(" Paris")."""
    me.attribute(smollm2(), PROMPT, TARGET, top_k=20).plot().save(HERE / "attribution.svg")


def circuits(run: Path) -> None:
    """The circuit of the same prompt."""
    me.attribute(smollm2(), PROMPT, TARGET).circuit().save(HERE / "circuits.svg", columns=2)


def certificate(run: Path) -> None:
    """Both bounds of FFN neurons against their exact scores, and the k-th best."""
    model, k = smollm2(), 300
    passes, _ = run_passes(model, PROMPT, TARGET, tokens="first", biases="keep", space="auto")
    search = _Search(passes, "mlp", k=k, sign="promote", moments=None)
    # The first k by bound, and 4,000 drawn of the rest.
    rest = torch.randperm(len(search.order) - k, generator=torch.Generator().manual_seed(0))[:4000] + k
    search.chosen = search.order[torch.cat([torch.arange(k), rest.sort().values])]
    score = passes[0].scores(*search.vectors(0)).numpy()
    upper = search.bound[search.chosen].numpy()
    lower = -_bounds(passes[0], "mlp", "suppress", vocabulary_moments(model)).flatten()[search.chosen].numpy()
    kth = np.sort(score[:k])[0]
    assert (lower <= score + 1e-5).all()
    assert (score <= upper + 1e-5).all()
    with look.style():
        left, right = look.row(2, height=3.1)
        _against(left, score, upper, f"upper bound, for the best {k}", LIGHT["pos"])
        left.axhline(kth, color=LIGHT["muted"], linestyle=":", linewidth=1)
        left.annotate(
            f"no bound below the {k}th best score,\n{kth:.3f}, has to be scored",
            (0.02, kth),
            xycoords=("axes fraction", "data"),
            va="bottom",
            fontsize=7.5,
            xytext=(0, 3),
            textcoords="offset points",
            color=LIGHT["muted"],
        )
        _against(right, score, lower, "lower bound, for the lowest", LIGHT["neg"])
        look.save(left, HERE / "certificate.png", dpi=150)


def _against(ax: Axes, score: np.ndarray, bound: np.ndarray, title: str, colour: str) -> None:
    ends = [min(score.min(), bound.min()), max(score.max(), bound.max())]
    ax.plot(ends, ends, color=LIGHT["muted"], linewidth=0.8)
    ax.scatter(score, bound, s=6, color=colour, alpha=0.5, linewidths=0)
    for scale in (ax.set_xscale, ax.set_yscale):
        scale("symlog", linthresh=0.01)
    ticks = [-1, -0.1, -0.01, 0, 0.01, 0.1, 1]
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.set_title(title)
    ax.set_xlabel("exact score, nats")
    ax.set_ylabel("bound, nats")


def edit_changes(run: Path) -> None:
    """What attention and FFNs write of both objects, before and after, from a run on SmolLM2."""
    frame = read_frame(run, "contrast")
    assert frame is not None, f"no contrast.parquet in {run}: make demo-real"
    first, last = read_summary(run)["window"]
    look.save(figures.layer_panels(frame, window=(first, last))[0], HERE / "edit-changes.svg")


def mega(run: Path) -> None:
    """The new object's probability behind every prompt of a run on SmolLM2, by role, unedited and under MEGA."""
    results = {"unedited": "no_edit", "MEGA": "mega", "no gate": "mega_ungated"}
    roles = {"rewrite": "the edit's prompt", "paraphrase": "paraphrases", "neighborhood": "neighbours"}
    frames = {
        label: pd.read_parquet(run / "results" / name / "prompts.parquet") for label, name in results.items()
    }
    rng = np.random.default_rng(0)
    with look.style():
        panels = look.row(len(roles), height=2.6, sharey=True)
        for ax, (role, title) in zip(panels, roles.items(), strict=True):
            for place, frame in enumerate(frames.values()):
                p = frame.loc[frame["role"] == role, "p_new"].dropna().to_numpy()
                colour = (LIGHT["muted"], LIGHT["new"], LIGHT["neg"])[place]
                ax.scatter(
                    place + rng.uniform(-0.18, 0.18, len(p)), p, s=9, color=colour, alpha=0.55, linewidths=0
                )
                ax.hlines(p.mean(), place - 0.3, place + 0.3, color=colour, linewidth=2)
            ax.set_xticks(range(len(frames)), list(frames), fontsize=8)
            ax.set_title(f"{title} ({len(p)})")
            ax.set_xlim(-0.5, len(frames) - 0.5)
        panels[0].set_ylabel("p(new object)")
        look.save(panels[0], HERE / "mega.svg")


def choosing(run: Path) -> None:
    """Acc, Gen and Spec of every row of the first table of docs/real-model.md, with intervals."""
    rows = _first_table(HERE.parent / "real-model.md")
    marks = {"Acc": ("o", "ink"), "Gen": ("s", "new"), "Spec": ("D", "old")}
    with look.style():
        (ax,) = look.row(1, width=6.4, height=0.55 + 0.33 * len(rows))
        for place, row in enumerate(reversed(rows)):
            for shift, (name, (mark, colour)) in zip((0.22, 0, -0.22), marks.items(), strict=True):
                value, low, high = map(float, re.findall(r"[\d.]+", row[name]))
                y, label = place + shift, name if not place else None
                ax.hlines(y, low, high, color=LIGHT[colour], linewidth=1)
                ax.plot(value, y, mark, color=LIGHT[colour], markersize=4.5, label=label)
        ax.set_yticks(range(len(rows)), [row[""] for row in reversed(rows)])
        ax.set_xlim(-0.03, 1.03)
        ax.set_xlabel(f"share of prompts, {rows[0]['n']} facts, 95 % intervals")
        ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        look.save(ax, HERE / "choosing.svg")


def _first_table(page: Path) -> list[dict[str, str]]:
    parts = page.read_text("utf-8").split("\n\n")
    lines = next(part for part in parts if part.startswith("|")).splitlines()
    heads, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [dict(zip(heads, row, strict=True)) for row in rows]


def cross_lingual(run: Path) -> None:
    """Distances between two embedded languages by layer, before and after alignment."""
    encoder, pairs = xl.load_encoder("langworld"), xl.langworld.bitext("half", 600)
    aligned = xl.align(encoder, pairs[200:], progress=False)
    with look.style():
        panels = look.row(2, height=2.5)
        for label, model, colour, mark in (
            ("pretrained", encoder, "old", "s"),
            ("aligned", aligned, "new", "o"),
        ):
            rows = xl.distances(model, pairs[:200], progress=False).layers.query("level == 'sentence'")
            for ax, metric in zip(panels, ("cosine", "cka"), strict=True):
                part = rows[rows["metric"] == metric]
                ax.plot(
                    part["layer"],
                    part["matched"],
                    color=LIGHT[colour],
                    marker=mark,
                    label=f"{label}: translations",
                )
                ax.plot(
                    part["layer"],
                    part["random"],
                    color=LIGHT[colour],
                    marker=mark,
                    linestyle=":",
                    markerfacecolor="none",
                    label=f"{label}: others",
                )
                ax.set_title({"cosine": "cosine", "cka": "linear CKA"}[metric])
                ax.set_xlabel("layer (0: embeddings)")
                ax.set_xticks(part["layer"].tolist())
        panels[0].legend(fontsize=7)
        look.save(panels[0], HERE / "cross-lingual.svg")


def own_model(run: Path) -> None:
    """What `diagnose` measures on SmolLM2, as a share of what it tolerates."""
    checks = me.diagnose(smollm2()).checks
    checks = checks[(checks["must"] == "<=") | (checks["must"] == "<")]
    with look.style():
        (ax,) = look.row(1, width=6.4, height=0.7 + 0.24 * len(checks))
        share = (checks["measured"] / checks["tolerance"]).clip(lower=1e-6)
        ax.barh(
            range(len(checks)),
            share,
            color=[LIGHT["pos"] if ok else LIGHT["neg"] for ok in checks["ok"]],
            height=0.6,
        )
        ax.axvline(1, color=LIGHT["neg"], linestyle="--", linewidth=1)
        ax.set_xscale("log")
        ax.set_xlim(5e-7, 3)
        ax.set_ylim(-0.6, len(checks) - 0.4)
        ax.set_xticks([1e-6, 1e-4, 1e-2, 1], ["0.000001 or less", "0.0001", "0.01", "1"])
        ax.minorticks_off()
        ax.set_yticks(range(len(checks)), checks["check"].tolist(), fontsize=7.5)
        ax.invert_yaxis()
        ax.set_xlabel("measured, as a share of what is tolerated (beyond 1: refused)")
        look.save(ax, HERE / "own-model.svg")


def own_facts(run: Path) -> None:
    """Three facts of one's own, with the probability that SmolLM2 gives either object."""
    facts = pd.DataFrame(
        [
            ("The capital of France is", "Paris", "Rome"),
            ("The Eiffel Tower is in the city of", "Paris", "Berlin"),
            ("The chemical symbol of gold is", "Au", "Ag"),
        ],
        columns=["prompt", "true", "new"],
    )
    with look.style():
        (ax,) = look.row(1, width=6.4, height=1.9)
        for place, row in facts.iterrows():
            for shift, key, colour in ((0.18, "true", "old"), (-0.18, "new", "new")):
                p = np.exp(me.attribute(smollm2(), row["prompt"], row[key], top_k=1).logp)
                ax.barh(
                    place + shift,
                    p,
                    height=0.3,
                    color=LIGHT[colour],
                    label=f"{key} object" if not place else None,
                )
                ax.annotate(
                    f"{row[key]} {p:.3f}",
                    (p, place + shift),
                    xytext=(3, 0),
                    textcoords="offset points",
                    va="center",
                    fontsize=8,
                )
        ax.set_yticks(range(len(facts)), [f"{prompt} …" for prompt in facts["prompt"]])
        ax.set_xlim(0, 1.15)
        ax.set_xlabel("p(first token of the object), unedited SmolLM2")
        ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        look.save(ax, HERE / "own-facts.svg")


def own_languages(run: Path) -> None:
    """Zero-shot scores of the embedded languages, with and without alignment on one of them."""
    encoder, tags = xl.load_encoder("langworld"), xl.langworld.task("pos", n_train=400, n_test=100)
    aligned = xl.align(encoder, xl.langworld.bitext("half", 600)[200:], progress=False)
    with look.style():
        (ax,) = look.row(1, width=6.0, height=2.4)
        for shift, label, model, colour in (
            (-0.18, "pretrained", encoder, "old"),
            (0.18, "aligned on half", aligned, "new"),
        ):
            table = xl.finetune_seeds(model, tags, seeds=(0, 1, 2), progress=False).summary()
            part = table[table["language"] != "source"]
            ax.bar(
                np.arange(len(part)) + shift,
                part["accuracy"],
                0.32,
                yerr=part["sd"],
                ecolor=LIGHT["ink"],
                color=LIGHT[colour],
                label=label,
            )
        ax.set_xticks(range(len(part)), part["language"].tolist())
        ax.set_ylabel("accuracy of tags, 3 seeds")
        ax.legend(loc="lower left")
        look.save(ax, HERE / "own-languages.svg")


def gpu(run: Path) -> None:
    """Driver, board and workers of `--engine ray`."""
    boxes = {
        "driver": (0.1, 1.3, "driver\nthe process that you start:\nchooses, writes the run folder"),
        "board": (3.3, 1.3, "board\nwhich cases are\nmissing, claimed, done"),
        "a": (6.5, 2.3, "worker, GPU 0\nits own model, one case"),
        "b": (6.5, 1.3, "worker, GPU 1\nits own model, one case"),
        "c": (6.5, 0.3, "worker on another node\nits own model, one case"),
    }
    with look.style():
        (ax,) = look.row(1, width=7.2, height=2.6)
        for name, (x, y, text) in boxes.items():
            edge = LIGHT["pos"] if name in "abc" else LIGHT["ink"]
            ax.add_patch(
                FancyBboxPatch((x, y), 2.3, 0.72, boxstyle="round,pad=0.06", fc=LIGHT["paper"], ec=edge)
            )
            ax.text(x + 1.15, y + 0.36, text, ha="center", va="center", fontsize=7.5)
        for start, end, style in (
            ((2.5, 1.66), (3.2, 1.66), "<->"),
            *(((5.7, 1.66), (6.4, y + 0.36), "<->") for y in (2.3, 1.3, 0.3)),
        ):
            ax.add_patch(
                FancyArrowPatch(start, end, arrowstyle=style, mutation_scale=9, color=LIGHT["muted"])
            )
        ax.set_xlim(0, 9)
        ax.set_ylim(0.1, 3.2)
        ax.axis("off")
        look.save(ax, HERE / "gpu.svg")


def batch_reports(run: Path) -> None:
    """The index over three small runs, as a browser shows it."""
    model, facts = me.load_model("factworld"), me.factworld.edits(8)
    del model
    with tempfile.TemporaryDirectory() as folder:
        me.save_facts(facts, Path(folder) / "facts.json")
        for name in ("ft", "rome", "no_edit"):
            _mechedit(
                "evaluate",
                "--editor",
                name,
                "--data",
                f"{folder}/facts.json",
                "--out",
                f"{folder}/runs/{name}",
            )
        index = batch.build([Path(folder) / "runs"], Path(folder) / "index.html", progress=False).index
        _photo(index, HERE / "batch-reports.png", width=1100, height=760)


def reading(run: Path) -> None:
    """The top of a run's page, as a browser shows it."""
    _photo(run / "report.html", HERE / "reading.png", width=1100, height=1500)


def _mechedit(*argv: str) -> None:
    from mechedit.cli import main

    assert main([*argv, "--quiet"]) == 0


def _photo(page: Path, target: Path, *, width: int, height: int) -> None:
    browser = formats.chromium()
    assert browser is not None, "no Chromium on this machine"
    size = f"--window-size={width},{height}"
    flags = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", size)
    subprocess.run(
        [browser, *flags, f"--screenshot={target}", page.resolve().as_uri()], check=True, capture_output=True
    )


DRAWN = (
    attribution,
    circuits,
    certificate,
    edit_changes,
    mega,
    choosing,
    cross_lingual,
    own_model,
    own_facts,
    own_languages,
    gpu,
    batch_reports,
    reading,
)


def main() -> None:
    """Makes the pictures that are named, or all."""
    names = {draw.__name__.replace("_", "-"): draw for draw in DRAWN}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*names, []], metavar="NAME", help=", ".join(names))
    parser.add_argument("--run", type=Path, default=Path("runs/demo-real"), help="a run of make demo-real")
    options = parser.parse_args()
    HERE.mkdir(exist_ok=True)
    for name in options.names or names:
        names[name](options.run)
        print(name)


if __name__ == "__main__":
    main()
