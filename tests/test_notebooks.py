"""The notebooks: in step with their sources, clean, and complete enough for the book."""

import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import matplotlib
import pytest
import yaml
from IPython.core.interactiveshell import InteractiveShell
from papermill import PapermillExecutionError, execute_notebook
from papermill.translators import PythonTranslator
from traitlets.config import Config

from callkit import data, notebook

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "book"))
import pair  # noqa: E402

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


def parameters(name: str) -> dict:
    """The defaults of the cell tagged `parameters`."""
    (cell,) = (c for c in cells(name) if "parameters" in c["metadata"].get("tags", []))
    defaults = {}
    exec(source(cell), defaults)
    return {k: v for k, v in defaults.items() if k != "__builtins__"}


def code(name: str) -> list[str]:
    return [source(c) for c in cells(name) if c["cell_type"] == "code" and "importlib.util" not in source(c)]


@pytest.fixture
def start(monkeypatch, tmp_path):
    """Run a notebook's parameters, then papermill's cell with those that it was given, then the first other cell."""
    shell = InteractiveShell.instance(config=Config(HistoryManager={"enabled": False}))
    monkeypatch.setattr(shell, "showtraceback", lambda *arguments, **options: None)
    monkeypatch.chdir(tmp_path)

    def run(name: str, given: dict) -> None:
        first, second, *_ = code(name)
        injected = PythonTranslator.codify(given, "Parameters")
        with matplotlib.rc_context():
            for cell in (first, injected, second):
                shell.run_cell(cell, store_history=True).raise_error()

    yield run
    InteractiveShell.clear_instance()


@pytest.mark.parametrize("name", NAMES)
def test_known_parameters_pass_the_first_cell(name, start):
    start(name, parameters(name) | ({"profile": "smoke"} if name == "05_training" else {}))


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_parameter_stops_the_first_cell(name, start):
    with pytest.raises(ValueError, match="unknown parameter 'seeed'") as error:
        start(name, {"seeed": 1})
    assert str(error.value).endswith(f"has: {', '.join(parameters(name))}"), "check() must have every parameter"


WRONG = {"dataset": "digit", "imbalance_ratio": "fifty", "profile": "huge", "method": "cal", "seed": -1, "steps": 0}


@pytest.mark.parametrize("name, word", [(n, w) for n in NAMES for w in WRONG if w in parameters(n)])
def test_a_wrong_word_stops_the_first_cell(name, word, start):
    with pytest.raises(ValueError, match=f"{word}.*{WRONG[word]}"):
        start(name, {word: WRONG[word]})


def test_a_second_run_in_the_same_kernel_is_no_unknown_parameter(start):
    """By then all of the notebook's variables are there."""
    start("02_long_tailed_data", {"imbalance_ratio": 100})
    start("02_long_tailed_data", {"imbalance_ratio": 20})


# What each chapter needs of another data set before it can show anything.
NETWORK = "results/fashion-mnist-ir100-{}-cpu-seed0.safetensors, which does not exist".format
RECORD = "python -m callkit evaluate runs/fashion-mnist-ir100/{}-cpu/seed0 --results".format
NEEDS = {
    "00_quickstart": NETWORK("ddpm"),
    "04_general_and_expert": RECORD("ddpm"),
    "06_who_gets_the_capacity": NETWORK("ddpm"),
    "07_a_floor_for_the_loss": RECORD("call"),
    "08_inside_the_expert": NETWORK("call"),
    "09_rivals": RECORD("ddpm"),
    "11_ablations": RECORD("ddpm"),
    "12_does_the_gain_last": RECORD("ddpm"),
    "10_metrics": NETWORK("ddpm"),
    "03_unet_and_ddim": NETWORK("ddpm"),
    "15_report": RECORD("ddpm"),
    "16_cifar10": "runs/fashion-mnist-ir100/ddpm-gpu/seed0-steps=4000-channels=64-precision=bf16 --results",
}


def test_a_record_that_is_missing_may_be_named_by_words_that_are_no_setting(tmp_path):
    words = dict(dataset="digits", imbalance_ratio=50, profile="cpu", method="call", overrides={"lam": 0.5})
    with pytest.raises(FileNotFoundError, match=r"--set lam=0.5` and `python -m callkit evaluate runs/.*lam=0.5 --res"):
        notebook.need_record(tmp_path, **words, weights="theta", guidance_scale=1)


def test_every_chapter_with_a_data_set_needs_records_or_none():
    no_records = {"02_long_tailed_data", "05_training"}  # run on Fashion-MNIST below
    assert NEEDS.keys() | no_records == {name for name in NAMES if "dataset" in parameters(name)}


@pytest.mark.parametrize("name", NEEDS)
def test_the_first_cell_says_which_records_are_missing(name, start):
    with pytest.raises(FileNotFoundError, match=re.escape(NEEDS[name])) as error:
        start(name, {"dataset": "fashion-mnist", "imbalance_ratio": 100})
    assert "python -m callkit train --dataset fashion-mnist --imbalance-ratio 100 " in str(error.value)


def papermill(name: str, folder: Path, given: dict):
    """Execute a notebook as readers do; return its cells."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of papermill's libraries
        return execute_notebook(
            FOLDER / f"{name}.ipynb",
            folder / "report.ipynb",
            given,
            kernel_name="python3",
            cwd=folder,
            progress_bar=False,
        ).cells


@pytest.mark.parametrize(
    "name, word, value", [("02_long_tailed_data", "dataest", "digits"), ("05_training", "method", "cal")]
)
def test_papermill_stops_at_the_first_cell(name, word, value, tmp_path):
    with pytest.raises(PapermillExecutionError, match=f"ValueError: unknown .*{value if word == 'method' else word}"):
        papermill(name, tmp_path, {word: value})
    executed = json.loads((tmp_path / "report.ipynb").read_text())["cells"]
    ran = [c for c in executed if c.get("execution_count")]
    assert "injected-parameters" in ran[-2]["metadata"]["tags"] and "notebook.check(" in source(ran[-1])


fashion = pytest.mark.skipif(not data.DEBIAN_FASHION.is_dir(), reason="Fashion-MNIST is not on this machine")


@fashion
def test_the_data_chapter_shows_other_data(tmp_path):
    papermill("02_long_tailed_data", tmp_path, {"dataset": "fashion-mnist", "imbalance_ratio": 100})


@fashion
def test_the_training_chapter_trains_on_other_data(start, tmp_path):
    start("05_training", {"dataset": "fashion-mnist", "imbalance_ratio": 100, "profile": "smoke"})
    assert (tmp_path / "runs/fashion-mnist-ir100/call-smoke/seed0/checkpoint.safetensors").exists()


REPOSITORY = "https://github.com/owner/name"


def test_an_ipynb_fetches_its_repository_where_callkit_is_missing(tmp_path):
    """As on Colab: an empty folder, no callkit, and a clone of this repository from "GitHub"."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    notebook = tmp_path / "02_long_tailed_data.ipynb"
    shutil.copy(FOLDER / notebook.with_suffix(".py").name, tmp_path)
    pair.pair(tmp_path, REPOSITORY)
    first = next(cell for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == "code")
    assert first["metadata"]["tags"] == ["remove-cell"]

    session = tmp_path / "session.py"
    session.write_text(f"""
import sys
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
sys.path = ["", *(p for p in sys.path if p not in ({str(ROOT)!r}, {str(tmp_path)!r}))]
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
shell.register_magic_function(lambda line: print("pip", line), magic_name="pip")
for _ in range(2):  # the second time it does nothing
    shell.run_cell({source(first)!r}).raise_error()
shell.run_cell("from callkit import records; print(records.results_folder())").raise_error()
""")
    environment = os.environ | {
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.file://{ROOT}.insteadOf",
        "GIT_CONFIG_VALUE_0": REPOSITORY,
        "IPYTHONDIR": str(tmp_path / "ipython"),
    }
    command = [sys.executable, session]
    output = subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True).stdout
    clone = tmp_path / "callkit-book"
    assert output.splitlines() == [str(clone), "pip install --quiet --editable .[metrics,lora]", f"{clone}/results"]


def test_every_ipynb_fetches_the_repository_that_pyproject_names():
    address = pair.github_repository()
    fetch = address and pair.FETCH.format(repository=address)
    for name in NAMES:
        first = next(source(cell) for cell in cells(name) if cell["cell_type"] == "code")
        assert first == fetch if fetch else "importlib.util" not in first
