"""The pages in a browser: no errors, no network, no sideways scrolling, sliders that move, nothing inaccessible.

Without more, on a small book of one page, built here by book/build.py. `make check-book` sets BOOK to the folder of the
whole book, built with OFFLINE=1.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).parents[1]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
BOOK = Path(os.environ["BOOK"]).resolve() if "BOOK" in os.environ else None
# For a whole book Playwright looks for one of its own, and says so where there is none: nothing looked at is a failure.
pytestmark = pytest.mark.skipif(not (CHROMIUM or BOOK), reason="no Chromium on the PATH")

PAGES = sorted(str(page.relative_to(BOOK)) for page in BOOK.rglob("*.html")) if BOOK else ["notebooks/sample.html"]
PAGES = [page for page in PAGES if not page.startswith("_static/") and page != "index.html"]  # which only forwards
REPOSITORY = "https://github.com/owner/name"


@pytest.fixture(scope="session")
def book(tmp_path_factory) -> Path:
    """The folder of the pages."""
    if BOOK:
        return BOOK
    root = tmp_path_factory.mktemp("project")
    shutil.copytree(ROOT / "book", root / "book", ignore=shutil.ignore_patterns("__pycache__"))
    (root / "book/_toc.yml").write_text("format: jb-book\nroot: notebooks/sample\n")
    (root / "notebooks").mkdir()
    shutil.copy(ROOT / "tests/sample_page.py", root / "notebooks/sample.py")
    for name in ("_config.yml", "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md"):
        shutil.copy(ROOT / name, root)
    (root / "pyproject.toml").write_text(f'[project.urls]\nRepository = "{REPOSITORY}"\n')
    (root / "_build/mathjax").mkdir(parents=True)  # as if fetched; the page shows its formulas as TeX
    (root / "_build/mathjax/tex-chtml.js").touch()
    subprocess.run([sys.executable, root / "book/build.py"], env=os.environ | {"OFFLINE": "1"}, check=True)
    return root / "_build/html"


@pytest.fixture(scope="module")  # while it is open, asyncio has a loop running, which Snakemake refuses
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(params=[(w, t) for w in (390, 1400) for t in ("light", "dark")], ids=lambda p: f"{p[0]}px-{p[1]}")
def context(browser, request):
    width, theme = request.param
    size = {"width": width, "height": 900}
    context = browser.new_context(viewport=size, color_scheme=theme, reduced_motion="reduce", offline=True)
    yield context
    context.close()


def show(context, path: Path):
    """Open a page, and all that is folded away on it."""
    page = context.new_page()
    page.problems = []
    page.on("console", lambda m: m.type == "error" and page.problems.append(m.text))
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.on("requestfailed", lambda r: page.problems.append(f"not found: {r.url}"))
    page.on("request", lambda r: r.url.startswith(("file:", "data:")) or page.problems.append(f"asks for {r.url}"))
    page.goto(path.as_uri())
    page.add_style_tag(content="* { animation: none !important; transition: none !important }")
    page.evaluate("globalThis.MathJax?.startup?.promise")
    page.evaluate("document.querySelectorAll('main details').forEach(d => d.open = true)")
    page.evaluate("document.querySelectorAll('main button.toggle-button-hidden').forEach(b => b.click())")
    page.wait_for_timeout(500)  # the theme waits, too, before it measures again
    return page


@pytest.mark.parametrize("name", PAGES)
def test_no_errors_no_network_no_sideways_scrolling(name, context, book):
    page = show(context, book / name)
    assert page.problems == []
    assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]


@pytest.mark.parametrize("name", PAGES)
def test_accessible(name, context, book):
    """No serious or critical violation of axe-core's rules."""
    page = show(context, book / name)
    found = {
        f"{violation['id']}: {node['target']}: {node['failureSummary']}"
        for violation in Axe().run(page).response["violations"]
        if violation["impact"] in ("serious", "critical")
        for node in violation["nodes"]
    }
    assert not found, "\n".join(sorted(found))


@pytest.mark.skipif(BOOK is not None, reason="the book may have no repository yet")
def test_an_edit_begins_at_the_source_of_a_notebook(book):
    page = (book / "notebooks/sample.html").read_text(encoding="utf-8")
    assert f"{REPOSITORY}/edit/main/notebooks/sample.py" in page and "edit/main/notebooks/sample.ipynb" not in page


def test_there_is_a_slider(book):
    assert any("frame-slider" in (book / name).read_text(encoding="utf-8") for name in PAGES)


@pytest.mark.parametrize("name", PAGES)
def test_each_key_on_a_slider_shows_another_image(name, browser, book):
    page = show(browser, book / name)
    assert BOOK or page.locator(".frame-slider").count() == 1, "the sample page is there to show one"
    for slider in page.locator(".frame-slider").all():
        handle, shown = slider.locator("input"), slider.locator("img:visible")
        handle.press("Home")
        images, labels = [], []
        for _ in range(int(handle.get_attribute("max")) + 1):
            assert shown.count() == 1 and shown.evaluate("image => image.naturalWidth") > 0
            images.append(shown.get_attribute("src"))
            labels.append(slider.locator("output").inner_text())
            handle.press("ArrowRight")
        assert len(images) > 1
        assert len(set(images)) == len(set(labels)) == slider.locator("img").count() == len(images)
    page.close()
