"""What every command takes: the options that all share, and the kinds of value an option may have."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from mechedit.model import HookedModel


#: Weights of a model that is too small to gain by a second thread, and stalls on one where cores are shared.
SMALL = 20_000_000


#: What says which model runs where; a recipe may say it too.
PLACE = ("model", "device", "dtype")


class Parser(argparse.ArgumentParser):
    """Wrong usage is one line, as every other error."""

    def error(self, message: str) -> NoReturn:
        """Status 2."""
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Words may stand behind options too, where a command takes `words` (argparse itself reads one run of them)."""
        options, rest = self.parse_known_args(args, namespace)
        if rest and (not hasattr(options, "words") or any(word.startswith("-") for word in rest)):
            self.error(f"unrecognized arguments: {' '.join(rest)}")
        if rest:
            options.words = [*options.words, *rest]
        return options


def command(
    commands: Any, name: str, run: Any, example: str, *, model: bool = True
) -> argparse.ArgumentParser:
    """Adds a subcommand whose help is the docstring of `run`, with the options that all commands share."""
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


def load(options: Any) -> HookedModel:
    """The model, device and dtype of `options` or of a configuration; a small model on the CPU runs in one thread."""
    import torch

    from mechedit.model import load_model

    model = load_model(options.model, device=options.device, dtype=options.dtype)
    if model.device.type == "cpu" and sum(weight.numel() for weight in model.hf.parameters()) < SMALL:
        torch.set_num_threads(1)
    return model


def count(text: str) -> int:
    """An integer of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, found {value}")
    return value


def top_k(text: str) -> int | str:
    """A count, or "all"."""
    return text if text == "all" else count(text)


def layers(text: str) -> tuple[int, int] | str:
    """The word auto, or FIRST-LAST."""
    if text == "auto":
        return text
    first, _, last = text.partition("-")
    if not first.isdigit() or not last.isdigit():
        raise argparse.ArgumentTypeError(f"expected auto or FIRST-LAST, as 4-7, found {text!r}")
    return int(first), int(last)
