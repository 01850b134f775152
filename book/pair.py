"""Regenerate each notebooks/NN_name.ipynb from the NN_name.py beside it: `python book/pair.py [folder]`.

The .py (jupytext's py:percent) is the source. The .ipynb carries no outputs and is byte-identical each time:
jupytext gives cells random ids, and nbstripout then numbers them.
"""

import subprocess
import sys
from pathlib import Path


def pair(folder: Path) -> list[Path]:
    """Write the .ipynb of every .py in `folder`; return them in order."""
    sources = sorted(folder.glob("*.py"))
    if not sources:
        raise FileNotFoundError(f"no notebooks: {folder} has no .py file")
    notebooks = [source.with_suffix(".ipynb") for source in sources]
    subprocess.run([sys.executable, "-m", "jupytext", "--quiet", "--to", "ipynb", *sources], check=True)
    subprocess.run([sys.executable, "-m", "nbstripout", *notebooks], check=True)
    return notebooks


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1] / "notebooks"
    print("notebooks:", *(notebook.name for notebook in pair(folder)))
