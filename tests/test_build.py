"""What book/build.py writes itself."""

import ast
import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("jupytext")
sys.path.append(str(Path(__file__).parents[1] / "book"))

import build

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("path", ["book/build.py", "book/pair.py", "callkit/tables.py"])
def test_text_with_greek_letters_is_read_and_written_as_utf_8(path):
    calls = [node for node in ast.walk(ast.parse((ROOT / path).read_text("utf-8"))) if isinstance(node, ast.Call)]
    named = [c for c in calls if getattr(c.func, "attr", "") in ("read_text", "write_text", "open")]
    named = [c for c in named if ast.unparse(c.func) != "tarfile.open"]
    assert named and all("encoding" in {k.arg for k in c.keywords} for c in named)


PAGES = sorted([*(ROOT / "book").glob("*.md"), *(ROOT / "notebooks").glob("*.py")])


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_every_colon_fence_stands_alone_and_is_closed(path):
    """An unclosed one swallows the rest of the page, without a warning."""
    fences = [line.removeprefix("# ") for line in path.read_text("utf-8").splitlines() if ":::" in line]
    still_open = []
    for line in fences:
        colons, brace, _ = line.partition("{")
        assert not colons.strip(":"), line
        if brace:
            still_open.append(colons)
        else:
            assert colons == still_open.pop(), line
    assert not still_open


def test_the_statistics_are_the_notebooks_own(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "EXECUTED", tmp_path)
    for name, durations in (("a", [1.0, 20.4]), ("b", [3.0, None])):
        cells = [{"metadata": {"papermill": {"duration": d}}} for d in durations] + [{"metadata": {}}]
        run = {"duration": sum(d or 0 for d in durations) + 1, "end_time": "2026-01-02T03:04:05"}
        (tmp_path / f"{name}.ipynb").write_text(json.dumps({"metadata": {"papermill": run}, "cells": cells}))
        (tmp_path / f"{name}.machine").write_text(f"the machine of {name}")
    lines = build.statistics(["a", "b"]).splitlines()
    assert lines[2:5] == [
        "| {doc}`../notebooks/a` | 22 | 20 | 2026-01-02 |",
        "| {doc}`../notebooks/b` | 4 | 3 | 2026-01-02 |",
        "| all | 26 | | |",
    ]
    assert [line for line in lines[5:] if line] == ["the machine of a.", "the machine of b."]


def test_the_key_of_a_notebook_has_what_it_may_import():
    required = build.required()
    assert {"torch", "scipy", "pandas", "ipywidgets", "diffusers", "efficientnet-lite-pytorch"} <= set(required)
    assert not {"callkit", "pytest", "ruff", "snakemake"} & set(required)
    assert "diffusers 0" in build.versions(required)
