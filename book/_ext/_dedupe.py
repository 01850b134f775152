"""Drop the inline scripts that Jupyter Book's double initialisation of Sphinx registers twice."""


def _dedupe(app, pagename, templatename, context, doctree):
    seen, kept = set(), []
    for script in context.get("script_files", []):
        body = getattr(script, "attributes", {}).get("body")
        if body and body in seen:
            continue
        seen.add(body)
        kept.append(script)
    context["script_files"] = kept


def setup(app):
    app.connect("html-page-context", _dedupe, priority=900)  # late: after every extension has added its own
    return {"parallel_read_safe": True, "parallel_write_safe": True}
