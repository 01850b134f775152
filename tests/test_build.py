"""What book/build.py writes itself."""

import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("jupytext")
sys.path.append(str(Path(__file__).parents[1] / "book"))

import build


def test_the_statistics_are_the_notebooks_own(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "EXECUTED", tmp_path)
    for name, durations in (("a", [1.0, 20.4]), ("b", [3.0, None])):
        cells = [{"metadata": {"papermill": {"duration": d}}} for d in durations] + [{"metadata": {}}]
        run = {"duration": sum(d or 0 for d in durations) + 1, "end_time": "2026-01-02T03:04:05"}
        (tmp_path / f"{name}.ipynb").write_text(json.dumps({"metadata": {"papermill": run}, "cells": cells}))
    lines = build.statistics(["a", "b"]).splitlines()
    assert lines[2:5] == [
        "| {doc}`../notebooks/a` | 22 | 20 | 2026-01-02 |",
        "| {doc}`../notebooks/b` | 4 | 3 | 2026-01-02 |",
        "| all | 26 | | |",
    ]
