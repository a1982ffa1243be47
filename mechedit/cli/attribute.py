"""`mechedit attribute`: NLKA of a target after a prompt, of many, or of the difference between two."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import Any

from experiments.cli.output import as_table, print_json
from mechedit.cli.editor import add_editor_options
from mechedit.cli.fact import add_fact_options, chosen_fact
from mechedit.cli.options import command, top_k
from mechedit.cli.pairs import read_pairs
from mechedit.recipes.configurations import SETTINGS
from reports.errors import InputError

#: Options of a ranking, and what they are where they are not given.
RANKING = {"sign": "promote", "method": "certified", "biases": "keep", "tokens": "first"}
#: What a kind of attribution leaves of them.
TAKES = {
    "contrast": ("biases",),
    "edited": ("sign", "biases", "tokens"),
    "editor": ("sign", "biases", "tokens"),
    "prompts": tuple(RANKING),
    "prompt": tuple(RANKING),
}
UNITS = ("layers", "heads", "mlp_neurons", "attn_neurons")


def attribute(options: argparse.Namespace) -> None:
    """NLKA of a target after a prompt, of a file of them, or of the difference between two."""
    mode = _mode(options)
    if mode == "prompts":
        _many(options)
        return
    if mode == "prompt":
        _single(options)
        return
    contrast = {"contrast": _targets, "edited": _saved_edit, "editor": _edit}[mode](options)
    if options.out is not None:
        contrast.save(options.out)
    _show_difference(options, contrast)


def _mode(options: argparse.Namespace) -> str:
    """Which kind of attribution the options ask for.

    Raises:
        InputError: Options do not go together.
    """
    kinds = [
        name for name in ("prompts", "contrast", "edited", "editor") if getattr(options, name) is not None
    ]
    if len(kinds) > 1:
        raise InputError(f"attribute: expected one of --{kinds[0]} and --{kinds[1]}, found both")
    mode = kinds[0] if kinds else "prompt"
    needed = {"prompts": (), "editor": ("fact",)}.get(mode, ("prompt", "target"))
    if missing := [name for name in needed if getattr(options, name) is None]:
        raise InputError(f"attribute: expected --{' and --'.join(needed)}, found no --{missing[0]}")
    foreign: list[str] = ["prompt", "target"] if mode == "prompts" else []
    foreign += [] if mode == "editor" else ["fact", "case", *SETTINGS]
    if given := [name for name in foreign if getattr(options, name) is not None]:
        name = given[0].replace("_", "-")
        raise InputError(f"{name}: --{mode} takes no --{name}; leave it out")
    if options.circuit is not None and mode != "prompt":
        raise InputError(f"circuit: --{mode} takes no --circuit; leave it out")
    for name, usual in RANKING.items():
        if name not in TAKES[mode] and getattr(options, name) != usual:
            raise InputError(f"{name}: --{mode} takes no --{name}; leave it out")
    return mode


def _ranking(options: argparse.Namespace, mode: str) -> dict[str, Any]:
    space = {} if mode in ("edited", "editor") else {"space": options.space or "auto"}
    return {"top_k": options.top_k, **{name: getattr(options, name) for name in TAKES[mode]}, **space}


# --- one prompt, and many ---------------------------------------------------------------------------


def _single(options: argparse.Namespace) -> None:
    from mechedit.attribution import attribute, attribution_json
    from mechedit.recipes.configured_model import load
    from reports.attribution_circuit import check_path
    from reports.readable import SCORE_MEANS, WORDS_MEAN

    circuit = None if options.circuit is None else check_path(options.circuit)
    attr = attribute(load(options), options.prompt, options.target, **_ranking(options, "prompt"))
    if options.out is not None:
        attr.save(options.out)
    if circuit is not None:
        attr.circuit().save(circuit)
    if options.json:
        print_json(attribution_json(attr))
        return
    print(
        f"log p({attr.target_token!r}) = {attr.logp:.4f} nats; the account misses it by {attr.completeness_gap:.1e}"
    )
    print(SCORE_MEANS)
    print(WORDS_MEAN)
    for unit in UNITS:
        print(f"\n{unit}\n{as_table(attr.readable(10, unit))}")
    _say_saved(options)


def _say_saved(options: argparse.Namespace) -> None:
    """Where the result lies, and how to see its page."""
    if options.out is not None:
        print(f"\nsaved: {options.out} (page: mechedit report {shlex.quote(str(options.out))})")
    if options.circuit is not None:
        print(f"circuit: {options.circuit}")


def _many(options: argparse.Namespace) -> None:
    prompts, targets = read_pairs(options.prompts)
    from mechedit.attribution import attribute_many, attribution_json
    from mechedit.recipes.configured_model import load

    results = attribute_many(
        load(options),
        prompts,
        targets,
        **_ranking(options, "prompts"),
        out=options.out,
        progress=not options.quiet,
    )
    if options.json:
        print_json(
            {"n": len(results), "out": options.out, "results": [attribution_json(attr) for attr in results]}
        )
        return
    summary = results.summary()
    summary["prompt"] = [text if len(text) <= 50 else f"…{text[-49:]}" for text in summary["prompt"]]
    print(as_table(summary))
    _say_saved(options)


# --- the difference between two ---------------------------------------------------------------------


def _targets(options: argparse.Namespace) -> Any:
    from mechedit.attribution import contrast
    from mechedit.recipes.configured_model import load

    ranking = _ranking(options, "contrast")
    return contrast(load(options), options.prompt, options.target, options.contrast, **ranking)


def _saved_edit(options: argparse.Namespace) -> Any:
    """--edited: a folder that `WeightChange.save` or `EditBook.save` wrote."""
    from mechedit.anatomy.edit_contrast import under_edit
    from mechedit.attribution.options import Options
    from mechedit.editors import EditBook, WeightChange
    from mechedit.recipes.configured_model import load

    model, folder = load(options), Path(options.edited)
    change = (folder / "change.json").is_file()
    saved: Any = (WeightChange if change else EditBook).load(folder)
    ranking = Options(**_ranking(options, "edited"))
    return under_edit(
        model,
        saved.apply(model),
        options.prompt,
        options.target,
        label=folder.name,
        options=ranking,
        space=options.space or "auto",
    )


def _edit(options: argparse.Namespace) -> Any:
    """--editor: --fact is edited, and its rewrite prompt and new object attributed where no others are given."""
    fact, data = chosen_fact(options)
    from mechedit.anatomy.edit_contrast import edit_contrast
    from mechedit.recipes.configured_model import load
    from mechedit.recipes.editor_choice import chosen_editor

    model = load(options)
    editor = chosen_editor(options, model, [fact], data=data)
    ranking = _ranking(options, "editor")
    return edit_contrast(model, editor, fact, prompt=options.prompt, target=options.target, **ranking)


def _show_difference(options: argparse.Namespace, contrast: Any) -> None:
    from mechedit.attribution import contrast_json
    from reports.readable import DIFFERENCE_MEANS

    if options.json:
        print_json(contrast_json(contrast))
        return
    named = [
        f"{side.logp:.4f} ({side.target_token!r}"
        + ("" if side.label == side.target_token else f", {side.label}")
        + ")"
        for side in (contrast.a, contrast.b)
    ]
    gap = f"the account misses it by {contrast.completeness_gap:.1e}"
    print(f"log p {' less '.join(named)} = {contrast.logp:.4f} nats; {gap}")
    print(DIFFERENCE_MEANS)
    for unit in UNITS:
        print(f"\n{unit}\n{as_table(contrast.readable(10, unit))}")
    _say_saved(options)


# --- the options ------------------------------------------------------------------------------------


def add(commands: Any) -> None:
    """`attribute`."""
    p = command(
        commands,
        "attribute",
        attribute,
        'mechedit attribute --prompt "The capital of France is" --target Paris',
    )
    p.add_argument("--prompt", help="the text that the target is predicted behind")
    p.add_argument("--target", help="scored behind the prompt")
    p.add_argument(
        "--prompts", metavar="FILE", help="many instead: .json, .csv or .tsv of prompt, target; --out goes on"
    )
    p.add_argument("--top-k", type=top_k, default=300, help="neurons of each kind, or all (default 300)")
    p.add_argument("--sign", choices=("promote", "suppress"), default="promote")
    p.add_argument(
        "--method",
        choices=("certified", "exhaustive"),
        default="certified",
        help="the same ranking by bounds, or by scoring every neuron",
    )
    p.add_argument("--biases", choices=("keep", "drop"), default="keep", help="drop reproduces the reference")
    p.add_argument(
        "--tokens",
        choices=("first", "sum"),
        default="first",
        help="the target's first token (with a bare space before it), or all of them",
    )
    p.add_argument(
        "--circuit", metavar="FILE", help="draw the circuit: .svg, .pdf, .png, .html to explore, or .json"
    )
    difference = p.add_argument_group("the difference between two")
    difference.add_argument("--contrast", metavar="TARGET", help="an old target, to set --target against")
    difference.add_argument(
        "--edited", metavar="FOLDER", help="a saved weight change or edit book, against the model without it"
    )
    add_editor_options(difference, default=None)
    add_fact_options(difference, required=False)
    p.add_argument("--out", help="folder to save the result in; with --prompts a run folder")
