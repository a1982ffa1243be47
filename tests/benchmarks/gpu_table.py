"""The table of docs/benchmarks.md, of what `tests.benchmarks.gpu` measured on a GPU, or saying that nothing was."""

from __future__ import annotations

from typing import Any

from reports.errors import InputError

__all__ = ["BEGIN", "END", "FULL", "UNMEASURED", "page"]

#: What is measured: a shape or an embedded model, and its dtype.
FULL = (
    ("gpt2-xl", "bfloat16"),
    ("llama2-7b", "bfloat16"),
    ("factworld", "float32"),
    ("factworld-llama", "float32"),
)
BEGIN, END = "<!-- measured on a GPU -->", "<!-- end -->"
UNMEASURED = "not measured: no GPU"


def page(text: str, results: dict[str, Any] | None) -> str:
    """The text of docs/benchmarks.md with the table of these results; without any, it says that none were measured.

    Raises:
        InputError: The text has no place for the table, or the results are those of `tiny` or of a CPU.

    >>> page(f"a {BEGIN} old {END} b", None).count("not measured: no GPU")
    8
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, behind = rest.partition(END)
    if not (begin and end):
        raise InputError(f"page: expected {BEGIN} and {END}, between which the table stands")
    if results is not None and (results["tiny"] or results["device"] == "cpu"):
        raise InputError(
            f"results: expected those of a GPU, found {results['device']}, tiny {results['tiny']}"
        )
    return f"{before}{BEGIN}\n{_table(results)}{END}{behind}"


def _table(results: dict[str, Any] | None) -> str:
    models = [f"{name}, {dtype}" for name, dtype in FULL]
    if results is None:
        readings = dict.fromkeys(("attribution", "attribute_many", "ROME", "MEGA"), UNMEASURED)
        lines = [f"| {models[0]} and {models[1]}: {name} | {value} |" for name, value in readings.items()]
        lines += [f"| the embedded models: {name} | {value} |" for name, value in readings.items()]
        return "\n".join(["| reading | figure |", "|---|---|", *lines, ""])
    cells = {(f"{row['model']}, {row['dtype']}", row["reading"]): row for row in results["rows"]}
    readings_of = list(dict.fromkeys(row["reading"] for row in results["rows"]))
    lines = [
        f"| {reading} | "
        + " | ".join(f"{cells[m, reading]['value']:.3g} {cells[m, reading]['unit']}".strip() for m in models)
        + " |"
        for reading in readings_of
    ]
    kept = ("device", "torch", "transformers", "date")
    about_line = ", ".join(f"{key} {results[key]}" for key in kept)
    head = [
        f"Measured on: {about_line}.",
        "",
        f"| reading | {' | '.join(models)} |",
        "|---" * (len(models) + 1) + "|",
    ]
    return "\n".join([*head, *lines, ""])
