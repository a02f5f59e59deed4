"""Every notebook runs from top to bottom on a CPU with FAST=1, in a new kernel and an empty folder."""

import os

import pytest

from tests.house import source

NOTEBOOKS = sorted((source.ROOT / "notebooks").glob("*.ipynb"))
MOST_CODE_CELLS = 12


def code_cells(path):
    """A notebook and its code cells."""
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    return notebook, [cell for cell in notebook.cells if cell.cell_type == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs_from_top_to_bottom(path, tmp_path, monkeypatch):
    from nbclient import NotebookClient

    monkeypatch.setenv("FAST", "1")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(source.ROOT), os.environ.get("PYTHONPATH", "")]))
    notebook, cells = code_cells(path)
    NotebookClient(notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    assert [cell.execution_count for cell in cells if cell.source] == list(range(1, len(cells) + 1))
    assert any(cell.outputs for cell in cells)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_short_and_tells_its_story(path):
    notebook, cells = code_cells(path)
    assert 1 <= len(cells) <= MOST_CODE_CELLS
    assert notebook.cells[0].cell_type == "markdown" and notebook.cells[0].source.startswith("# ")
    assert not [output for cell in cells for output in cell.outputs if output.output_type == "error"]
    assert all(cell.source.strip() for cell in cells), "an empty cell"


def test_the_notebooks_are_there():
    first = {"00_tour", "01_write_a_loss", "02_scale_out", "03_offline_rl"}
    wanted = first | {"04_denoisers", "05_latent_actions", "06_group_relative", "07_finetune_a_flow_policy"}
    assert wanted <= {path.stem for path in NOTEBOOKS}
