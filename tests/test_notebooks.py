"""The notebooks: they run from a clean kernel, are committed with their outputs, and name no address."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

NOTEBOOKS = sorted((Path(__file__).parents[1] / "experiments" / "notebooks").glob("*.ipynb"))
QUICK = ("1_", "5_")
ADDRESS = re.compile(r"""(?:src|href)\s*=\s*\\?["']?https?:""")


def runs(notebook: nbformat.NotebookNode, folder: Path) -> None:
    NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    ).execute()


@pytest.mark.parametrize(
    "file",
    [
        pytest.param(file, id=file.stem, marks=() if file.name.startswith(QUICK) else pytest.mark.slow)
        for file in NOTEBOOKS
    ],
)
@pytest.mark.filterwarnings("default")  # of the kernel's own machinery
def test_a_notebook_runs_from_a_clean_kernel(file: Path, root: Path) -> None:
    runs(nbformat.read(file, as_version=4), root)


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
    assert not ADDRESS.search(file.read_text(encoding="utf-8"))
    assert "the one line to change" in code[0].source


def test_there_are_five_of_them() -> None:
    assert len(NOTEBOOKS) == 5
