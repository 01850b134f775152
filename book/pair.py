"""Regenerate each notebooks/NN_name.ipynb from the NN_name.py beside it: `python book/pair.py [folder]`.

The .py (jupytext's py:percent) is the source. The .ipynb carries no outputs and is byte-identical each time:
jupytext gives cells random ids, and nbstripout then numbers them.

An .ipynb is also opened far from its repository, on Colab. So its first code cell, which no page shows, fetches the
repository where callkit is missing. The address is that of [project.urls] in pyproject.toml; without it there is no
such cell.
"""

import re
import subprocess
import sys
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[1]

FETCH = """\
# Where callkit is not installed, on Colab for example, fetch the book's repository and install it.
import importlib.util

if importlib.util.find_spec("callkit") is None:
    !git clone --quiet --depth 1 {repository} callkit-book
    %cd callkit-book
    %pip install --quiet --editable .[metrics,lora]"""


def github_repository() -> str | None:
    """https://github.com/OWNER/NAME from pyproject.toml, if it is there."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    match = re.search(r'^Repository = "(https://github\.com/[\w.-]+/[\w.-]+)"', project, re.M)
    return match and match[1]


def add_fetch(notebook: Path, repository: str) -> None:
    """Put FETCH before the first code cell."""
    content = nbformat.read(notebook, as_version=4)
    first = next(i for i, cell in enumerate(content.cells) if cell.cell_type == "code")
    source, metadata = FETCH.format(repository=repository), {"tags": ["remove-cell"]}
    content.cells.insert(first, nbformat.v4.new_code_cell(source, metadata=metadata))
    nbformat.write(content, notebook)


def pair(folder: Path, repository: str | None = github_repository()) -> list[Path]:
    """Write the .ipynb of every .py in `folder`; return them in order."""
    sources = sorted(folder.glob("*.py"))
    if not sources:
        raise FileNotFoundError(f"no notebooks: {folder} has no .py file")
    notebooks = [source.with_suffix(".ipynb") for source in sources]
    subprocess.run([sys.executable, "-m", "jupytext", "--quiet", "--to", "ipynb", *sources], check=True)
    if repository:
        for notebook in notebooks:
            add_fetch(notebook, repository)
    subprocess.run([sys.executable, "-m", "nbstripout", *notebooks], check=True)
    return notebooks


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "notebooks"
    print("notebooks:", *(notebook.name for notebook in pair(folder)))
