"""Build the book: execute the notebooks, then render them and the prose as HTML. Run by `make book`.

    _build/executed  each executed notebook, beside the key of everything that its outputs depend on
    _build/src       what Sphinx reads: _config.yml, book/ and the executed notebooks
    _build/html      the book

Nothing executed touches the tracked files. A second build does only what has changed: a notebook is
executed again when its source, its parameters, callkit/, results/ or benchmarks/ differ, and the pages are rendered
again when anything does.

Environment: OFFLINE=1 puts MathJax into the pages, which then need no network.
"""

import base64
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from importlib import metadata
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from pair import github_repository, pair
from sphinx_external_toc.parsing import parse_toc_yaml

ROOT = Path(__file__).resolve().parents[1]
# Relative to ROOT, where main() goes: no page can then hold the builder's own paths.
BUILD = Path("_build")
EXECUTED, SRC, HTML = BUILD / "executed", BUILD / "src", BUILD / "html"

OFFLINE = os.environ.get("OFFLINE") == "1"

# What the build passes to which notebook. A name that its `parameters` cell lacks is an error.
PARAMETERS: dict[str, dict] = {
    # a slice of training, from the start on each build
    "05_training": {"minutes": 0.5, "run": str(BUILD / "runs" / "05_training")},
}


def files(folder: Path) -> list[Path]:
    return sorted(
        p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts and p.name != ".DS_Store"
    )


def digest(paths: list[Path], salt: str = "") -> str:
    """One hash over names and contents."""
    total = hashlib.sha256(salt.encode())
    for path in paths:
        total.update(f"{path} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()


def execute(names: list[str]) -> None:
    """Bring _build/executed up to date with the notebooks `names`."""
    EXECUTED.mkdir(parents=True, exist_ok=True)
    keys, shared = {}, [path for folder in ("callkit", "results", "benchmarks") for path in files(Path(folder))]
    shared = [path for path in shared if path.suffix != ".md"]
    for name in names:
        source = Path("notebooks", f"{name}.py")
        if not source.exists():
            sys.exit(f"book: book/_toc.yml lists notebooks/{name}, and {source} does not exist")
        salt = json.dumps([PARAMETERS.get(name, {}), versions(required())], sort_keys=True)
        keys[name] = digest([source, *shared], salt)
    stale = {
        name
        for name in names
        if not (EXECUTED / f"{name}.ipynb").exists()
        or not (EXECUTED / f"{name}.machine").exists()
        or not (key := EXECUTED / f"{name}.key").exists()
        or key.read_text(encoding="utf-8") != keys[name]
    }
    if not stale:
        print(f"book: {len(names)} notebooks unchanged")
        return

    import papermill  # here: a second is too long for a build that has nothing to execute

    shutil.rmtree(BUILD / "runs", ignore_errors=True)
    generated = BUILD / "generated"
    shutil.rmtree(generated, ignore_errors=True)
    shutil.copytree("notebooks", generated, ignore=shutil.ignore_patterns("*.ipynb", ".*", "__pycache__"))
    pair(generated)
    for name in names:  # all of them before the first long run
        notebook, parameters = generated / f"{name}.ipynb", PARAMETERS.get(name, {})
        if unknown := parameters.keys() - papermill.inspect_notebook(notebook).keys():
            absent = ", ".join(sorted(unknown))
            sys.exit(f"book: notebooks/{name}.py has no parameter {absent} (PARAMETERS, book/build.py)")

    cores = os.cpu_count() or 1
    workers = min(len(stale), cores, 4)
    os.environ.setdefault("OMP_NUM_THREADS", str(cores // workers))  # the kernels inherit it
    print(f"book: executing {len(stale)} of {len(names)} notebooks, {workers} at a time", flush=True)
    with ProcessPoolExecutor(workers) as pool:
        running = {pool.submit(execute_one, name): name for name in names if name in stale}
        for number, done in enumerate(as_completed(running), 1):
            name = running[done]
            try:
                seconds = done.result()
            except RuntimeError as error:
                pool.shutdown(cancel_futures=True)
                partial = EXECUTED / f"{name}.partial.ipynb"
                sys.exit(f"{error}\nbook: notebooks/{name} failed; what it showed until then is in {partial}")
            (EXECUTED / f"{name}.key").write_text(keys[name], encoding="utf-8")
            (EXECUTED / f"{name}.machine").write_text(f"{processor()}; {versions()}", encoding="utf-8")
            print(f"book: [{number}/{len(running)}] notebooks/{name}  {seconds:.0f} s", flush=True)


def execute_one(name: str) -> float:
    """Execute a notebook of _build/generated; the seconds that it took. RuntimeError if one of its cells fails."""
    import papermill

    started, partial = time.perf_counter(), EXECUTED / f"{name}.partial.ipynb"
    try:
        papermill.execute_notebook(
            BUILD / "generated" / f"{name}.ipynb",
            partial,
            PARAMETERS.get(name, {}),
            cwd=".",
            kernel_name="python3",
            progress_bar=False,
            # The kernel's own remarks are not the notebook's; and that it is interrupted, before it ends, is no error.
            extra_arguments=["--log-level=CRITICAL"],
            store_widget_state=False,  # a page has no kernel: it shows a slider's frames
        )
    except papermill.PapermillExecutionError as error:
        raise RuntimeError(str(error)) from None  # as it is, it would not survive the way to another process
    partial.replace(EXECUTED / f"{name}.ipynb")
    return time.perf_counter() - started


def add_mathjax(static: Path) -> None:
    """Put MathJax 3 into the pages' static folder (npm fetches it once, into _build)."""
    cache = BUILD / "mathjax"
    if not cache.exists():
        if not shutil.which("npm"):
            sys.exit("book: OFFLINE=1 takes MathJax from the package mathjax@3, and npm is not installed")
        print("book: fetching MathJax", flush=True)
        packed = BUILD / "npm"
        packed.mkdir(exist_ok=True)
        npm = ["npm", "pack", "mathjax@3", "--silent", "--pack-destination", str(packed)]
        archive = subprocess.run(npm, check=True, stdout=subprocess.PIPE, text=True).stdout.split()[-1]
        with tarfile.open(packed / archive) as tar:
            tar.extractall(packed, [member for member in tar if member.name.startswith("package/es5/")])
        (packed / "package/es5").replace(cache)
    shutil.copytree(cache, static / "mathjax")


def save_figures(notebook: Path, folder: Path) -> None:
    """Write the picture of each cell tagged `save:NAME.png`, for a page of prose to show."""
    folder.mkdir(exist_ok=True)
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        for tag in cell["metadata"].get("tags", []):
            if tag.startswith("save:"):
                (image,) = (o["data"]["image/png"] for o in cell["outputs"] if "image/png" in o.get("data", {}))
                (folder / tag.removeprefix("save:")).write_bytes(base64.b64decode(image))


def versions(packages: Iterable[str] = ("torch", "numpy", "matplotlib")) -> str:
    """What executes the notebooks."""
    return ", ".join([f"Python {platform.python_version()}", *(f"{p} {metadata.version(p)}" for p in packages)])


def required() -> list[str]:
    """The installed packages that a notebook may use: those that callkit and its extras but `dev` and `sweeps` name."""
    lines = (line for line in metadata.requires("callkit") if not re.search("extra == .(dev|sweeps)", line))
    installed = {canonicalize_name(d.name) for d in metadata.distributions()}
    return sorted({canonicalize_name(Requirement(line).name) for line in lines} & installed - {"callkit"})


def processor() -> str:
    """What the notebooks ran on, as far as the machine tells."""
    told = Path("/proc/cpuinfo")
    models = re.findall(r"^model name\s*: (.+)", told.read_text(encoding="utf-8"), re.M) if told.exists() else []
    return f"{models[0] if models else platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def statistics(names: list[str]) -> str:
    """A table of how long each executed notebook took, from the metadata that papermill left in it."""
    lines, total = ["| chapter | seconds | of these its longest cell | executed |", "|---|---:|---:|---|"], 0.0
    for name in names:
        notebook = json.loads((EXECUTED / f"{name}.ipynb").read_text(encoding="utf-8"))
        run, cells = notebook["metadata"]["papermill"], notebook["cells"]
        longest = max(cell["metadata"].get("papermill", {}).get("duration") or 0 for cell in cells)
        total += run["duration"]
        lines.append(
            f"| {{doc}}`../notebooks/{name}` | {run['duration']:.0f} | {longest:.0f} | {run['end_time'][:10]} |"
        )
    return "\n".join(
        [
            *lines,
            f"| all | {total:.0f} | | |",
            "",
            *sorted({(EXECUTED / f"{name}.machine").read_text(encoding="utf-8") + ".\n" for name in names}),
        ]
    )


def stage(names: list[str]) -> None:
    """Fill _build/src."""
    shutil.rmtree(SRC, ignore_errors=True)
    shutil.copytree("book", SRC / "book", ignore=shutil.ignore_patterns("__pycache__"))
    (SRC / "notebooks").mkdir()
    for name in names:
        shutil.copy2(EXECUTED / f"{name}.ipynb", SRC / "notebooks")
        save_figures(EXECUTED / f"{name}.ipynb", SRC / "book/_figures")
    for name in ("CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md"):  # which pages of prose include
        shutil.copy2(name, SRC)
    (SRC / "book/_statistics.md").write_text(statistics(names), encoding="utf-8")
    config = yaml.safe_load(Path("_config.yml").read_text(encoding="utf-8"))
    config["execute"]["execute_notebooks"] = "off"
    if repository := github_repository():
        config["repository"] = {"url": repository, "branch": "main"}
        config["launch_buttons"]["colab_url"] = "https://colab.research.google.com"
        config["html"] |= dict(use_repository_button=True, use_edit_page_button=True, use_issues_button=True)
        edit = repository + "/edit/main/{{ file_name | replace('.ipynb', '.py') }}"  # the .ipynb are generated
        config["sphinx"]["config"]["html_context"] |= dict(
            edit_page_url_template=edit, edit_page_provider_name="GitHub"
        )
    else:
        print("book: no buttons for Colab and GitHub: pyproject.toml has no Repository in [project.urls]")
    if OFFLINE:
        add_mathjax(SRC / "book/_static")
        config["sphinx"]["config"]["mathjax_path"] = "mathjax/tex-chtml.js"
    (SRC / "_config.yml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")


def render() -> None:
    """Build every page afresh: Sphinx repeats no warning for a page that it does not read again."""
    for folder in (HTML, BUILD / ".doctrees"):
        shutil.rmtree(folder, ignore_errors=True)
    print("book: rendering the pages", flush=True)
    # -W: a broken reference is an error. -n: so is one to a name that nothing defines.
    jupyter_book = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()"]
    command = [*jupyter_book, "build", SRC, "--path-output", "."]
    command += ["--toc", (SRC / "book/_toc.yml").resolve(), "-W", "-n", "--keep-going"]
    log = BUILD / "sphinx.log"
    with log.open("w", encoding="utf-8") as out:
        status = subprocess.run(command, stdout=out, stderr=subprocess.STDOUT).returncode
    if status:
        shutil.rmtree(HTML, ignore_errors=True)  # no half-built book to mistake for a good one
        lines = log.read_text(encoding="utf-8").splitlines()
        problems = [line for line in lines if re.search("WARNING|ERROR|CRITICAL", line)] or lines
        sys.exit("\n".join(problems) + f"\nbook: not built; all of Sphinx's output is in {log}")


def main() -> None:
    os.chdir(ROOT)
    contents = list(parse_toc_yaml("book/_toc.yml"))  # in reading order, without suffixes
    names = [Path(document).name for document in contents if document.startswith("notebooks/")]
    execute(names)
    stage(names)
    key, rendered = digest(files(SRC) + files(Path("callkit"))), BUILD / "html.key"
    pages = [HTML / "index.html"] + [HTML / f"{document}.html" for document in contents]
    if rendered.exists() and rendered.read_text(encoding="utf-8") == key and all(page.exists() for page in pages):
        print("book: pages unchanged")
    else:
        rendered.unlink(missing_ok=True)
        render()
        # Some versions of Jupyter Book exit 0 without a page.
        if missing := [str(page) for page in pages if not page.exists()]:
            sys.exit(f"book: not built: {', '.join(missing)}")
        rendered.write_text(key, encoding="utf-8")
    print(f"book: {ROOT / HTML / 'index.html'}")


if __name__ == "__main__":
    main()
