"""Let autodoc read callkit's docstrings, which are plain text: see `to_rst`. And its default dictionaries."""

import re

ENTRY = re.compile(r"(\S+)  +(\S.*)")  # a name, at least two spaces, what it is


def inline(text: str) -> str:
    """`code` as reStructuredText writes it; what would be markup there by accident is escaped."""
    parts = text.split("`")
    parts[::2] = [re.sub(r"\||(?<=\w)_(?!\w)", r"\\\g<0>", part) for part in parts[::2]]
    return "``".join(parts)


def to_rst(lines: list[str]) -> list[str]:
    """Paragraphs stay; lines of `name  meaning` become a list of definitions, indented blocks are shown as they are."""
    found = []
    for block in re.split(r"\n\s*\n", "\n".join(lines).strip("\n")):
        first, *others = block.split("\n")
        if first.startswith("    "):
            found += ["::", "", *block.split("\n")]
        elif ENTRY.fullmatch(first) and all(ENTRY.fullmatch(line) or line.startswith(" ") for line in others):
            for line in (first, *others):
                if entry := ENTRY.fullmatch(line):
                    found += [f"``{entry[1]}``", f"    {inline(entry[2])}"]
                else:
                    found.append(f"    {inline(line.strip())}")
        else:
            found += inline(block).split("\n")
        found.append("")
    return found


def _process(app, what, name, obj, options, lines):
    lines[:] = to_rst(lines)


def default_dictionaries(app, what, name, obj, options, signature, returns):
    """A dataclass shows a default that is made anew as <factory>; all of callkit's are empty dictionaries."""
    return signature and signature.replace("<factory>", "{}"), returns


def setup(app):
    app.connect("autodoc-process-docstring", _process)
    app.connect("autodoc-process-signature", default_dictionaries)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
