"""The files that describe the project agree with one another, and name nothing of one machine."""

import hashlib
import platform
import re
import subprocess
import tomllib
import venv
from importlib.metadata import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
ENVIRONMENT = yaml.safe_load((ROOT / "environment.yml").read_text())


def requirements(extra: str) -> list[str]:
    """The requirements of an extra, those of the extras that it includes among them."""
    found = []
    for line in PROJECT["optional-dependencies"][extra]:
        requirement = Requirement(line)
        if requirement.name == PROJECT["name"]:
            found += [r for included in requirement.extras for r in requirements(included)]
        else:
            found.append(line)
    return found


def canonical(lines: list[str]) -> list[str]:
    return sorted(str(Requirement(line)).lower() for line in lines)


def tracked_files() -> list[Path]:
    """What git holds or would add."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [path for name in listed.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def test_environment_lists_what_pyproject_requires():
    pip = next(item["pip"] for item in ENVIRONMENT["dependencies"] if isinstance(item, dict))
    assert pip[-1] == "-e ."
    assert canonical(pip[:-1]) == canonical(PROJECT["dependencies"] + requirements("dev"))


def test_dev_includes_metrics_book_and_sweeps():
    dev = canonical(requirements("dev"))
    for extra in ("metrics", "book", "sweeps"):
        assert set(canonical(requirements(extra))) <= set(dev)


SNAKEMAKE_PYTHON = "Python 3.11 to 3.13"


def test_environment_has_the_same_python():
    (marker,) = {str(Requirement(line).marker) for line in PROJECT["optional-dependencies"]["sweeps"]}
    oldest, beyond = PROJECT["requires-python"], int(re.fullmatch(r'python_version < "3\.(\d+)"', marker)[1])
    assert f"python{oldest},<3.{beyond}" in ENVIRONMENT["dependencies"]
    assert SNAKEMAKE_PYTHON == f"Python {oldest.removeprefix('>=')} to 3.{beyond - 1}"
    assert SNAKEMAKE_PYTHON in (ROOT / "book/sweeps.md").read_text()


def test_a_sweep_without_snakemake_says_which_python_has_it(tmp_path):
    venv.create(tmp_path, with_pip=False)
    (tmp_path / ".installed").touch()
    made = subprocess.run(
        ["make", "sweep", "GRID=digits", f"VENV={tmp_path}"], cwd=ROOT, capture_output=True, text=True
    )
    assert made.returncode and f"needs {SNAKEMAKE_PYTHON}, this is {platform.python_version()}" in made.stderr
    assert "Traceback" not in made.stderr


def test_core_dependencies_have_lower_bounds_only():
    for line in PROJECT["dependencies"]:
        assert {specifier.operator for specifier in Requirement(line).specifier} == {">="}, line


def test_what_is_pinned_runs_on_the_oldest_python():
    oldest = PROJECT["requires-python"].removeprefix(">=")
    pinned = [r for r in map(Requirement, requirements("dev")) if "==" in str(r.specifier)]
    for r in pinned:
        assert SpecifierSet(metadata(r.name)["Requires-Python"] or "").contains(oldest), f"{r} on Python {oldest}"
    assert pinned


def bibtex(key: str) -> dict[str, str]:
    """The fields of one entry of the bibliography, without braces."""
    entry = re.search(rf"^@\w+\{{{key},\n(.*?)^\}}", (ROOT / "book/references.bib").read_text(), re.M | re.S)[1]
    return {name: value.strip("{}") for name, value in re.findall(r"(\w+) += (.*),$", entry, re.M)}


def test_versions_agree():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    newest = re.search(r"^## (\S+?),", (ROOT / "CHANGELOG.md").read_text(), re.M)[1]
    assert {citation["version"], newest, bibtex("callkit")["version"]} == {PROJECT["version"]}


def test_bibtex_and_citation_agree():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    (paper,) = citation["references"]
    for key, cited in (("callkit", citation), ("call2025", paper)):
        assert bibtex(key)["title"] == cited["title"] and bibtex(key)["author"] == cited["authors"][0]["name"]


# Written so that no pattern matches its own line.
FOREIGN = {
    "a package index": rb"\bpypi\.[a-z]|python[h]osted|\bmirrors?\.[a-z-]+\.[a-z]|npmjs\.[a-z]|index[-_]url",
    "a path of one machine": rb"(?<![\w.~-])/(?:work|root|home/\w+|opt/pypi)/",
}


@pytest.mark.parametrize("what", FOREIGN)
def test_no_file_names(what):
    hits = {
        f"{path.relative_to(ROOT)}: {match[0].decode()}"
        for path in tracked_files()
        for match in re.finditer(FOREIGN[what], path.read_bytes())
    }
    assert not hits, f"these name {what}"


def test_licences():
    """Code: Apache-2.0. Text and figures: CC BY 4.0."""
    apache = hashlib.sha256((ROOT / "LICENSE").read_bytes()).hexdigest()
    assert apache == "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30", "not the licence's own text"
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert PROJECT["license"] == citation["license"] == "Apache-2.0"
    assert PROJECT["license-files"] == ["LICENSE"]
    assert "https://creativecommons.org/licenses/by/4.0/legalcode" in (ROOT / "LICENSE-TEXT").read_text()
    footer = yaml.safe_load((ROOT / "_config.yml").read_text())["html"]["extra_footer"]
    for text in ((ROOT / "README.md").read_text(), footer):
        assert "Apache-2.0" in text and "CC BY 4.0" in text


WORKFLOWS = {
    path.stem: yaml.load(path.read_text(), yaml.BaseLoader)  # BaseLoader: `on` is a word there, not a truth value
    for path in (ROOT / ".github/workflows").glob("*.yml")
}


def steps(workflow: dict) -> list[dict]:
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


def test_workflows():
    assert WORKFLOWS.keys() == {"tests", "book", "weekly"}
    for workflow in WORKFLOWS.values():
        assert workflow["permissions"] == {"contents": "read"}
        assert all(("uses" in step) != ("run" in step) for step in steps(workflow))
        for job in workflow["jobs"].values():
            assert job.get("needs") in (None, *workflow["jobs"])


def test_workflows_run_targets_of_the_makefile():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    commands = [step["run"].split() for workflow in WORKFLOWS.values() for step in steps(workflow) if "run" in step]
    made = {word for make, *words in commands if make == "make" for word in words if "=" not in word}
    assert {"lint", "test", "book", "check-book", "links"} == made <= targets


def test_ci_tests_the_oldest_python():
    oldest, *_ = WORKFLOWS["tests"]["jobs"]["test"]["strategy"]["matrix"]["python"]
    assert PROJECT["requires-python"] == f">={oldest}"


def test_the_weekly_build_is_fresh():
    uses = [step for step in steps(WORKFLOWS["weekly"]) if "uses" in step]
    assert WORKFLOWS["weekly"]["on"]["schedule"]
    assert not any("cache" in step["uses"] or "cache" in step.get("with", {}) for step in uses)


def test_what_is_cached_are_executed_notebooks_alone():
    """With packages, some GB for each Python, the cache's 10 GB would not hold them."""
    cached = [(name, s) for name, flow in WORKFLOWS.items() for s in steps(flow) if "cache" in str(s)]
    assert [(name, s["with"]["path"]) for name, s in cached] == [("book", "_build/executed")]


def test_what_is_published_is_what_was_built():
    paths = {step["with"]["path"] for step in steps(WORKFLOWS["book"]) if "upload" in step.get("uses", "")}
    makefile = (ROOT / "Makefile").read_text()
    assert paths == {"_build/callkit-book.zip", "_build/html"} and all(path in makefile for path in paths)
