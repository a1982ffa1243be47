"""What a command of xlprobe takes: an encoder, and text files."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from experiments.cli.options import count, subcommand
from reports.errors import InputError

logger = logging.getLogger(__name__)


def command(
    commands: Any, name: str, run: Any, example: str, *, encoder: bool = True
) -> argparse.ArgumentParser:
    """A subcommand with the options that all share, and with those of the encoder it loads, if it loads one."""
    parser = subcommand(commands, name, run, example)
    if encoder:
        parser.add_argument("--encoder", default="langworld", help="langworld, a folder or a Hugging Face id")
        parser.add_argument("--device", default="auto", help="auto, cpu, cuda (default auto)")
        parser.add_argument(
            "--dtype", default="float32", help="float32, float64, bfloat16, float16 (default float32)"
        )
        parser.add_argument(
            "--attention", default="sdpa", help="sdpa, eager, flash_attention_2 (default sdpa)"
        )
    return parser


def refuse_beside(
    options: argparse.Namespace, main: str, *, needed_by: tuple[str, ...], instead_of: tuple[str, ...]
) -> None:
    """Refuse options that would be ignored: `needed_by` without `main`, `instead_of` beside it.

    Raises:
        InputError: Such an option is given.
    """
    given = getattr(options, main) is not None
    for name in needed_by:
        if getattr(options, name) is not None and not given:
            raise InputError(f"{name}: --{name} says nothing without --{main}; name the file of --{main} too")
    for name in instead_of:
        if getattr(options, name) is not None and given:
            raise InputError(
                f"{name}: --{name} is of the embedded languages, --{main} names files; leave one of them out"
            )


def training_arguments(parser: argparse.ArgumentParser, default: str) -> None:
    """Add what every training takes; what is not given is chosen by the encoder's size."""
    parser.add_argument("--steps", type=count, help=f"training steps (default: {default})")
    parser.add_argument("--epochs", type=float, help="instead of --steps")
    parser.add_argument("--batch", type=count, help="items of a step")
    parser.add_argument("--lr", type=float, help="learning rate")
    parser.add_argument("--micro", type=count, help="sentences at once; the gradient is that of the batch")


def load(options: argparse.Namespace) -> Any:
    """The encoder of --encoder, --device, --dtype and --attention."""
    from experiments.checkpoints import progress_bar
    from xlprobe.encoders.encoder import load_encoder

    with progress_bar(shown=not options.quiet):
        return load_encoder(
            options.encoder, device=options.device, dtype=options.dtype, attention=options.attention
        )


def write_page(out: str | None) -> dict[str, str]:
    """Write `report.html` of the result or the training in `out`; {"report": path}, empty without --out."""
    from reports import probe_page
    from reports.files import write

    if out is None:
        return {}
    return {"report": str(write(Path(out) / "report.html", probe_page.render(Path(out))))}


def print_pages(pages: dict[str, str]) -> None:
    """Print where the pages are."""
    for name, path in pages.items():
        print(f"{name}: {path}")


def read_lines(path: str, *, argument: str) -> list[str]:
    """The lines of a UTF-8 text file.

    Raises:
        InputError: No such file, other bytes, or an empty line.
    """
    from xlprobe.data.corpora import text_lines

    file = Path(path)
    if not file.is_file():
        raise InputError(f"{argument}: expected a text file, one sentence a line, found none at {file}")
    lines = text_lines(file)
    if empty := [i for i, line in enumerate(lines, 1) if not line.strip()]:
        raise InputError(
            f"{argument}: line {empty[0]} of {file} is empty; parallel text needs both sides of every line"
        )
    return lines


def layers(text: str) -> tuple[int, ...]:
    """Numbers of layers, from 0,1,2.

    >>> layers("0,8")
    (0, 8)
    """
    return tuple(int(part) for part in text.split(",") if part)


def pooling_argument(parser: argparse.ArgumentParser, what: str) -> None:
    """Add --pooling, of `what`."""
    parser.add_argument("--pooling", choices=("mean", "first"), default="mean", help=f"{what} (default mean)")


def names(text: str) -> tuple[str, ...]:
    """Names, from A,B,C.

    >>> names("en-de, ja-kk")
    ('en-de', 'ja-kk')
    """
    return tuple(part.strip() for part in text.split(",") if part.strip())


def read_data(path: str) -> Any:
    """The text of --data: a folder with ud, sib200 and tatoeba, or a recipe whose [languages] name files.

    Raises:
        InputError: As the folder or the table refuses it.
    """
    from experiments import config
    from xlprobe.recipes.real_text import RealTextRecipe

    if Path(path).suffix == ".toml":
        return config.load(path, RealTextRecipe, experiment=RealTextRecipe.experiment).folder()
    return RealTextRecipe(data=path).folder()


def read_parallel(options: argparse.Namespace) -> Any:
    """Parallel text: of --source, --target and --links (Pharaoh format), of two treebanks, or of --data and --pair.

    Raises:
        InputError: Options that do not go together, and what the files are refused for.
    """
    from xlprobe.data.corpora import Bitext, load_links

    given = [name for name in ("source", "target", "links") if getattr(options, name, None)]
    if getattr(options, "data", None):
        if given:
            raise InputError(f"{given[0]}: --data names the text; expected --pair beside it")
        text = read_data(options.data)
        return text.held_out(options.pair or text.pairs[0])
    if getattr(options, "pair", None):
        raise InputError("pair: expected --data beside it, whose languages it names")
    if not {"source", "target"} <= set(given):
        raise InputError("source: expected --source and --target, or --data and --pair")
    if all(str(getattr(options, side)).endswith(".conllu") for side in ("source", "target")):
        if options.links:
            raise InputError(
                "links: treebanks are matched by sent_id, a file of links by line; leave one out"
            )
        from xlprobe.data.parallel import match_conllu

        matched = match_conllu(options.source, options.target)
        if matched.only_source or matched.only_target:
            logger.warning(
                "%d sentences of %s and %d of %s have no partner",
                matched.only_source, options.source, matched.only_target, options.target,
            )  # fmt: skip
        return matched.bitext

    source, target = (read_lines(getattr(options, side), argument=side) for side in ("source", "target"))
    if not options.links:
        return SimpleNamespace(source=source, target=target, links=None)
    words = [tuple(tuple(text.split()) for text in side) for side in (source, target)]
    return Bitext(words[0], words[1], load_links(options.links))
