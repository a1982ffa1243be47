"""The notebooks: they run from a clean kernel, are committed with their outputs, and name no address."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

NOTEBOOKS = sorted((Path(__file__).parents[1] / "experiments" / "notebooks").glob("*.ipynb"))
QUICK = ("5_",)  # the first runs in `tests/test_notebook_manners.py`
#: What a notebook that runs here asks less of: the same commands on two facts.
FEWER = {"5_runs_to_a_report": [('"--limit", "6"', '"--limit", "2"')]}
FOLDER = re.compile(r"(?<![\w.:/-])/(?:work|home|root|tmp|Users)/")  # of the machine where it ran
ADDRESS = re.compile(r"""(?:src|href)\s*=\s*\\?["']?https?:""")


def runs(notebook: nbformat.NotebookNode, folder: Path) -> None:
    NotebookClient(
        notebook, timeout=1800, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    ).execute()


def marks_of(file: Path) -> list[pytest.MarkDecorator]:
    """Slow, but for the quick ones; of the real model where it is."""
    slow = [] if file.name.startswith(QUICK) else [pytest.mark.slow]
    return [*slow, *([pytest.mark.real] if "real" in file.name else [])]


@pytest.mark.parametrize(
    "file",
    [pytest.param(file, id=file.stem, marks=marks_of(file)) for file in NOTEBOOKS],
)
@pytest.mark.filterwarnings("default")  # of the kernel's own machinery
def test_a_notebook_runs_from_a_clean_kernel(file: Path, root: Path) -> None:
    notebook = nbformat.read(file, as_version=4)
    for old, few in FEWER.get(file.stem, ()):
        (cell,) = (cell for cell in notebook.cells if old in cell.source)
        cell.source = cell.source.replace(old, few)
    runs(notebook, root)


@pytest.mark.filterwarnings("default")
def test_a_notebook_that_fails_is_noticed(tmp_path: Path) -> None:
    broken = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 / 0")])
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        runs(broken, tmp_path)


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_a_notebook_is_committed_as_it_ran(file: Path) -> None:
    notebook = nbformat.read(file, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert outputs
    assert not [output for output in outputs if output.output_type == "error"]
    text = file.read_text(encoding="utf-8")
    assert not ADDRESS.search(text)
    if "real" in file.name:  # no warning, no place of the machine where it ran, no bar without its widget
        assert not [output for output in outputs if output.output_type == "stream"]
        assert not FOLDER.search(text)
        assert "widget-view" not in text
    assert "the one line to change" in code[0].source


def test_there_are_six_of_them() -> None:
    assert len(NOTEBOOKS) == 6


def test_a_folder_of_the_machine_is_noticed() -> None:
    assert FOLDER.search('"written: /home/ann/run"')
    assert not FOLDER.search("docs/home/page and https://x.org/home/")
