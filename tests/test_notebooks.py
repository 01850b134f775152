"""The notebooks: in step with their sources, clean, and complete enough for the book."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "notebooks"
NAMES = sorted({path.stem for suffix in ("py", "ipynb") for path in FOLDER.glob(f"*.{suffix}")})


def cells(name: str) -> list[dict]:
    return json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]


def source(cell: dict) -> str:
    return "".join(cell["source"])


@pytest.fixture(scope="module")
def regenerated(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("notebooks")
    for path in FOLDER.glob("*.py"):
        shutil.copy(path, folder)
    subprocess.run([sys.executable, ROOT / "book/pair.py", folder], check=True)
    return folder


def test_there_are_notebooks():
    assert NAMES


def test_the_contents_list_exactly_the_notebooks():
    toc = (ROOT / "book/_toc.yml").read_text()
    assert sorted(re.findall(r"file: notebooks/(\S+)", toc)) == NAMES


def test_every_page_in_the_contents_exists():
    contents = yaml.safe_load((ROOT / "book/_toc.yml").read_text())
    pages = [contents["root"]] + [c["file"] for part in contents["parts"] for c in part["chapters"]]
    missing = [p for p in pages if not any((ROOT / f"{p}{suffix}").exists() for suffix in (".md", ".py"))]
    assert not missing


@pytest.mark.parametrize("name", NAMES)
def test_ipynb_is_what_its_source_generates(name, regenerated):
    committed, generated = FOLDER / f"{name}.ipynb", regenerated / f"{name}.ipynb"
    assert committed.exists() and generated.exists(), "a .py or an .ipynb without the other"
    assert committed.read_bytes() == generated.read_bytes(), "out of step: run `make notebooks`"


@pytest.mark.parametrize("name", NAMES)
def test_no_outputs(name):
    for cell in cells(name):
        assert not cell.get("outputs") and not cell.get("execution_count"), source(cell)


@pytest.mark.parametrize("name", NAMES)
def test_one_parameters_cell(name):
    tagged = [cell for cell in cells(name) if "parameters" in cell["metadata"].get("tags", [])]
    assert len(tagged) == 1 and tagged[0]["cell_type"] == "code"


@pytest.mark.parametrize("name", NAMES)
def test_one_title(name):
    prose = "\n\n".join(source(cell) for cell in cells(name) if cell["cell_type"] == "markdown")
    # `# ` in a fence is no title
    prose = re.sub(r"^(`{3,}|:{3,})[^\n]*\n.*?^\1\s*$", "", prose, flags=re.M | re.S)
    titles = re.findall(r"^# .*", prose, flags=re.M)
    assert len(titles) == 1, titles


@pytest.mark.parametrize("name", NAMES)
def test_every_figure_has_a_caption_and_alt_text(name):
    for cell in cells(name):
        if mystnb := cell["metadata"].get("mystnb"):
            assert mystnb.get("image", {}).get("alt"), source(cell)
            assert "figure" not in mystnb or mystnb["figure"].get("caption"), source(cell)
