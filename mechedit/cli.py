"""The command line: `mechedit demo | attribute | evaluate | factworld | report | bench`.

Every command prints a table, or one JSON object with `--json`. Exit status: 0 done, 1 failed, 2 wrong usage
(one line on standard error), 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from reports.errors import InputError, MechEditError

if TYPE_CHECKING:
    import pandas as pd

    from mechedit.editors import Editor
    from mechedit.facts import FactEdit
    from mechedit.model import HookedModel

EDITORS = ("mega", "mean_shift", "no_edit")
SELECTION = 20  # facts by which a window is chosen, none of them evaluated


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit status."""
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s", stream=sys.stderr)
    options = _parser().parse_args(argv)
    try:
        return int(options.run(options) or 0)
    except InputError as error:
        return _fail(error, 2)
    except MechEditError as error:
        return _fail(error, 1)
    except KeyboardInterrupt:
        print("mechedit: interrupted; the same command goes on where it stopped", file=sys.stderr)
        return 130


def _fail(error: Exception, status: int) -> int:
    print("mechedit: error: " + " ".join(str(error).split()), file=sys.stderr)
    return status


# -- demo ----------------------------------------------------------------------------------------------------


def demo(options: argparse.Namespace) -> None:
    """The main study on the embedded world."""
    import torch

    from mechedit.demo import DemoConfig, run_demo

    # The embedded models are too small to gain by a second thread, and stall where cores are shared.
    torch.set_num_threads(1)
    config = DemoConfig(model=options.model, limit=options.limit, seed=options.seed)
    summary = run_demo(_load(options), config, options.out, progress=not options.quiet)
    report = Path(options.out) / "report.html"
    if options.json:
        rows = {row["name"]: _flat(row) for row in summary["editors"]}
        _print_json({**rows, "window": summary["window"], "n": summary["n"], "report": str(report)})
        return
    first, last = summary["window"]
    print(
        f"{summary['n']} of {options.limit} facts known; steered: attention outputs of layers {first} to {last}"
    )
    print(f"{'editor':<34}{'Acc':>7}{'Gen':>7}{'Spec':>7}{'mean':>7}   95 % interval")
    for row in summary["editors"]:
        cells = "".join(f"{row[key]['value']:>7.2f}" for key in ("acc", "gen", "spec", "mean"))
        print(f"{row['label']:<34}{cells}   {row['mean']['low']:.2f} to {row['mean']['high']:.2f}")
    print(f"report: {report}")


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """An editor's row for JSON: bare values, with intervals beside them and the n of Acc."""
    cells = {key: cell for key, cell in row.items() if isinstance(cell, dict)}
    values = {key: cell["value"] for key, cell in cells.items()}
    return {
        **values,
        "n": cells["acc"]["n"],
        "intervals": {key: [c["low"], c["high"]] for key, c in cells.items()},
    }


# -- attribute -----------------------------------------------------------------------------------------------


def attribute(options: argparse.Namespace) -> None:
    """NLKA of one target after one prompt."""
    import mechedit as me
    from mechedit.attribution import attribution_json

    attr = me.attribute(
        _load(options),
        options.prompt,
        options.target,
        top_k=options.top_k,
        sign=options.sign,
        biases=options.biases,
        method=options.method,
    )
    if options.out is not None:
        attr.save(options.out)
    if options.json:
        _print_json(attribution_json(attr))
        return
    print(
        f"log p({attr.target_token!r}) = {attr.logp:.4f} nats; the account misses it by {attr.completeness_gap:.1e}"
    )
    for unit in ("layers", "heads", "mlp_neurons", "attn_neurons"):
        print(f"\n{unit}\n{_table(attr.top(10, unit))}")


# -- evaluate ------------------------------------------------------------------------------------------------


def evaluate(options: argparse.Namespace) -> None:
    """One editor on the facts of a file."""
    import mechedit as me
    from experiments.runs import RunFolder
    from mechedit.editors import MEGA
    from mechedit.evaluation import baseline, check_facts
    from mechedit.facts import facts_hash
    from reports import page

    facts = me.load_facts(options.data, limit=options.limit)
    families = tuple(options.families.split(","))
    model = _load(options)
    check_facts(model, facts, families=families)
    editor = _editor(options, model)
    unedited = baseline(model, facts)
    if any(unedited.known) and isinstance(editor, MEGA) and editor.needs_selection:
        editor = editor.select(model, _selection(options, facts))
    config = {"command": "evaluate", "data": str(options.data), "families": list(families), "n": len(facts)}
    config |= {"editor": options.editor, "settings": repr(editor)}
    source = {"source": str(options.data), "facts": facts_hash(facts)}
    facts_of = model.provenance(data=source, seeds={"all": options.seed})
    run = RunFolder.open(options.out, config, provenance=facts_of) if options.out else None
    result = me.evaluate(
        model, editor, facts, families=families, progress=not options.quiet, run=run, unedited=unedited
    )
    table = result.summary()
    if run is not None:
        run.write_result(result, "evaluation")
        run.write_json("summary", _evaluation_summary(options, result, table))
        page.build(run.path)
        run.finish({"n_known": result.n_known, "n_total": result.n_total})
    if options.json:
        scores = {
            row["metric"]: {k: row[k] for k in ("value", "low", "high", "n")}
            for row in table.to_dict("records")
        }
        known = {"n_known": result.n_known, "n_total": result.n_total}
        _print_json(
            {
                "editor": editor.name,
                "model": model.name,
                **known,
                "notes": list(result.notes),
                "scores": scores,
            }
        )
        return
    print(f"{editor.name} on {model.name}: n known {result.n_known} of {result.n_total}")
    for note in result.notes:
        print(note)
    if result.n_known:
        print(_table(table[["metric", "value", "low", "high", "n"]]))
    if run is not None:
        print(f"report: {run.path / 'report.html'}")


def _editor(options: argparse.Namespace, model: HookedModel) -> Editor:
    """The editor as asked for, before it chooses anything."""
    from mechedit.editors import MEGA, NoEdit

    if options.editor == "no_edit":
        return NoEdit()
    mega = MEGA(window=options.window, gate=options.gate, name=options.editor)
    if mega.window != "auto":
        mega.layers(model)  # refuses a window outside of the model
    return replace(mega, estimator="shift") if options.editor == "mean_shift" else mega


def _selection(options: argparse.Namespace, facts: Sequence[FactEdit]) -> list[FactEdit]:
    """Facts that are not evaluated, for the editor to choose by: the world's own, or those behind `--limit`."""
    import mechedit as me

    if options.model in ("factworld", "factworld-llama"):
        return me.factworld.edits(SELECTION, seed=options.seed + 1, skip=facts)
    subjects = {fact.subject for fact in facts}
    more = me.load_facts(options.data, limit=len(facts) + 4 * SELECTION)
    rest = [fact for fact in more if fact.subject not in subjects][:SELECTION]
    if len(rest) < 2:
        raise InputError(
            f"data: {options.data} holds no facts beyond the {len(facts)} that are evaluated, and MEGA's window and "
            "gate are chosen on others; take a smaller --limit, or give --window and --gate always"
        )
    return rest


def _evaluation_summary(options: argparse.Namespace, result: Any, table: pd.DataFrame) -> dict[str, Any]:
    """What the report reads."""
    cells = {
        row["metric"].lower(): {k: row[k] for k in ("value", "low", "high", "n")}
        for row in table.to_dict("records")
    }
    shown = {key: cells[key] for key in ("acc", "gen", "spec", "es", "ps", "ns", "s") if key in cells}
    return {
        "title": f"{options.editor} on {options.model}",
        "subtitle": f"{result.n_total} edits from {Path(options.data).name}, one at a time",
        "model": options.model,
        "n": result.n_known,
        "editors": [{"name": options.editor, "label": options.editor, **shown}],
        "notes": [f"n known {result.n_known} of {result.n_total}", *result.notes],
        "not_done": ["Controls (no edit, gate alone, mean shift, random layers) are not part of this run."],
    }


# -- factworld, report ---------------------------------------------------------------------------------------


def factworld_train(options: argparse.Namespace) -> None:
    """Trains an embedded model from nothing."""
    from mechedit.factworld.train import Recipe, train

    recipe = Recipe(
        arch=options.arch, seed=options.seed, **({"steps": options.steps} if options.steps else {})
    )
    print(train(recipe, Path(options.out), progress=not options.quiet))


def factworld_check(options: argparse.Namespace) -> int:
    """Measures what an embedded model knows; status 1 where it falls short of its floors."""
    from mechedit.factworld.check import check

    table = check(_load(options), n=options.n)
    if options.json:
        _print_json({row["check"]: row for row in table.to_dict("records")})
    else:
        print(_table(table))
    return 0 if table["ok"].all() else 1


def factworld_export(options: argparse.Namespace) -> None:
    """Writes edits of the world in a published schema."""
    from mechedit.factworld import export

    n = export(options.out, schema=options.schema, limit=options.limit, seed=options.seed)
    print(f"{n} edits in {options.out}")


def report(options: argparse.Namespace) -> None:
    """Builds the page of a run folder anew."""
    from reports import page

    print(page.build(options.folder, options.out))


def bench_nlka(options: argparse.Namespace) -> None:
    """Times certified attribution against full enumeration and its floor."""
    from experiments.benchmarks.nlka import bench_nlka as bench

    result = bench(shape=options.shape, top_k=options.top_k, exhaustive=not options.no_exhaustive)
    if options.json:
        _print_json(result)
        return
    for key, value in result.items():
        print(f"{key}: {value}")


# -- shared --------------------------------------------------------------------------------------------------


def _load(options: argparse.Namespace) -> HookedModel:
    from mechedit.model import load_model

    return load_model(options.model, device=options.device, dtype=options.dtype)


def _print_json(value: dict[str, Any]) -> None:
    print(json.dumps(_finite(value), ensure_ascii=False))


def _finite(value: Any) -> Any:
    """NaN and infinities as null: JSON has neither."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _table(frame: pd.DataFrame) -> str:
    return str(frame.to_string(index=False, float_format=lambda x: f"{x:.4f}"))


class _Parser(argparse.ArgumentParser):
    """Wrong usage is one line, as every other error."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, found {value}")
    return value


def _top_k(text: str) -> int | str:
    return text if text == "all" else _count(text)


def _layers(text: str) -> tuple[int, int] | str:
    if text == "auto":
        return text
    first, _, last = text.partition("-")
    if not first.isdigit() or not last.isdigit():
        raise argparse.ArgumentTypeError(f"expected auto or FIRST-LAST, as 4-7, found {text!r}")
    return int(first), int(last)


def _command(
    commands: Any, name: str, run: Any, example: str, *, model: bool = True
) -> argparse.ArgumentParser:
    help_line = (run.__doc__ or "").strip().splitlines()[0]
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=help_line, description=help_line, epilog=f"example: {example}"
    )
    parser.set_defaults(run=run)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    parser.add_argument("--seed", type=int, default=0, help="of every random choice (default 0)")
    if model:
        parser.add_argument(
            "--model", default="factworld", help="factworld, factworld-llama, a folder or a Hugging Face id"
        )
        parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 (default auto)")
        parser.add_argument(
            "--dtype", default="float32", help="float32, float64, bfloat16, float16 (default float32)"
        )
    return parser


def _parser() -> argparse.ArgumentParser:
    from mechedit import __version__

    parser = _Parser(
        prog="mechedit", description="Attribute facts, edit them by steering attention, measure the edit."
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)

    _method_commands(commands)
    _world_commands(commands)
    _bench_commands(commands)
    p = _command(commands, "report", report, "mechedit report runs/demo", model=False)
    p.add_argument("folder", help="run folder")
    p.add_argument("-o", "--out", help="page to write (default: report.html in the folder)")
    return parser


def _method_commands(commands: Any) -> None:
    p = _command(commands, "demo", demo, "mechedit demo --out runs/demo")
    p.add_argument("--out", default="runs/demo", help="run folder (default runs/demo)")
    p.add_argument("--limit", type=_count, default=40, help="facts to edit (default 40)")

    p = _command(
        commands,
        "attribute",
        attribute,
        'mechedit attribute --prompt "The capital of France is" --target Paris',
    )
    p.add_argument("--prompt", required=True)
    p.add_argument("--target", required=True, help="scored for its first token behind the prompt")
    p.add_argument("--top-k", type=_top_k, default=300, help="neurons of each kind, or all (default 300)")
    p.add_argument("--sign", choices=("promote", "suppress"), default="promote")
    p.add_argument(
        "--method",
        choices=("certified", "exhaustive"),
        default="certified",
        help="the same ranking by bounds, or by scoring every neuron",
    )
    p.add_argument("--biases", choices=("keep", "drop"), default="keep", help="drop reproduces the reference")
    p.add_argument("--out", help="folder to save the result in")

    p = _command(
        commands,
        "evaluate",
        evaluate,
        "mechedit evaluate --editor mega --data edits.json --limit 20 --out runs/x",
    )
    p.add_argument("--editor", choices=EDITORS, default="mega")
    p.add_argument(
        "--data", required=True, help="CounterFact in its own or EasyEdit's schema: a file or a datasets name"
    )
    p.add_argument("--limit", type=_count, help="facts to edit (default: all)")
    p.add_argument("--window", type=_layers, default="auto", help="layers to steer, as 4-7 (default auto)")
    p.add_argument("--gate", choices=("hidden", "always"), default="hidden")
    p.add_argument("--families", default="probability,argmax", help="of metrics: probability, argmax, doubt")
    p.add_argument("--out", help="run folder; the same command again goes on")


def _bench_commands(commands: Any) -> None:
    bench = commands.add_parser("bench", help="Ratios within one run: nlka.").add_subparsers(
        required=True, metavar="COMMAND", parser_class=_Parser
    )
    p = _command(bench, "nlka", bench_nlka, "mechedit bench nlka --json", model=False)
    p.add_argument("--shape", choices=("gpt2-small", "gpt2-medium", "gpt2-xl"), default="gpt2-small")
    p.add_argument("--top-k", type=_count, default=300, help="neurons of each kind (default 300)")
    p.add_argument(
        "--no-exhaustive", action="store_true", help="leave out the enumeration, which takes minutes"
    )


def _world_commands(commands: Any) -> None:
    world = commands.add_parser("factworld", help="The embedded world: train, check, export.").add_subparsers(
        required=True, metavar="COMMAND", parser_class=_Parser
    )
    p = _command(
        world, "train", factworld_train, "mechedit factworld train --arch llama --out runs/llama", model=False
    )
    p.add_argument("--arch", choices=("gpt2", "llama"), default="gpt2")
    p.add_argument("--steps", type=_count, help="training steps (default: the recipe's)")
    p.add_argument(
        "--out", required=True, help="folder for checkpoint and model; the same command again goes on"
    )
    p = _command(world, "check", factworld_check, "mechedit factworld check --model factworld-llama")
    p.add_argument(
        "--n", type=_count, default=500, help="cases of each kind; 500 or more: every fact (default 500)"
    )
    p = _command(
        world,
        "export",
        factworld_export,
        "mechedit factworld export --schema counterfact --limit 100 --out edits.json",
        model=False,
    )
    p.add_argument("--schema", choices=("counterfact", "ripple", "easyedit"), default="counterfact")
    p.add_argument("--limit", type=_count, default=100, help="edits (default 100)")
    p.add_argument("--out", required=True, help="JSON file to write")
