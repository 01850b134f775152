"""The API page: its examples run, and use everything that it lists; docstrings reach it as they were meant."""

import doctest
import inspect
import re
import sys
from dataclasses import MISSING, fields
from pathlib import Path

from callkit.checkpoints import StepRecord
from callkit.config import TrainConfig
from callkit.lora_config import TuneConfig

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "book/api.md"
sys.path.append(str(ROOT / "book/_ext"))

from docstrings import default_dictionaries, to_rst  # noqa: E402


def test_the_examples_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    examples = "\n".join(re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), flags=re.M | re.S))
    failed, tried = doctest.DocTestRunner().run(doctest.DocTestParser().get_doctest(examples, {}, "api", str(PAGE), 0))
    assert tried > 50 and failed == 0


def test_every_function_listed_has_an_example_in_its_section():
    for section in PAGE.read_text().split("\n## ")[1:]:
        examples = "\n".join(line for line in section.splitlines() if line.startswith((">>>", "...")))
        listed = re.findall(r"^\.\. autofunction:: (\S+)", section, flags=re.M)
        used = {name.rpartition(".")[2] for name in listed if re.search(rf"\b{name.rpartition('.')[2]}\b", examples)}
        assert listed and {name.rpartition(".")[2] for name in listed} == used


def test_a_docstring_becomes_paragraphs_definitions_and_formulas():
    lines = [
        "Of `rank` |x| and x_0, W^g_.",
        "",
        "    D = a * b",
        "",
        "rank   a share",
        "       of min(d, k)",
        "where  a name",
    ]
    assert to_rst(lines) == [
        r"Of ``rank`` \|x\| and x_0, W^g\_.", "",
        "::", "", "    D = a * b", "",
        "``rank``", "    a share", "    of min(d, k)", "``where``", "    a name", "",
    ]  # fmt: skip


def test_a_default_that_is_made_anew_is_shown_as_the_empty_dictionary_that_it_is():
    for kind in (TrainConfig, TuneConfig, StepRecord):
        made_anew = [f for f in fields(kind) if f.default_factory is not MISSING]
        assert made_anew and all(f.default_factory() == {} for f in made_anew)
        shown, _ = default_dictionaries(None, "class", "", kind, None, str(inspect.signature(kind)), None)
        assert shown.count(" = {}") == len(made_anew) and "<factory>" not in shown
    assert default_dictionaries(None, "module", "", None, None, None, None) == (None, None)
