"""The files that describe the project agree with one another, and name nothing of one machine."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10, where pytest brings tomli
    import tomli as tomllib

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


def test_dev_includes_metrics_and_book():
    dev = canonical(requirements("dev"))
    for extra in ("metrics", "book"):
        assert set(canonical(requirements(extra))) <= set(dev)


def test_environment_has_the_same_python():
    assert f"python{PROJECT['requires-python']}" in ENVIRONMENT["dependencies"]


def test_core_dependencies_have_lower_bounds_only():
    for line in PROJECT["dependencies"]:
        assert {specifier.operator for specifier in Requirement(line).specifier} == {">="}, line


def test_versions_agree():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == PROJECT["version"]


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
