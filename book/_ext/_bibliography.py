"""Give the entries of a bibliography the role of list items: their own, doc-biblioentry, is deprecated, and a list of
them is no list to a screen reader."""


def _list_items(app, pagename, templatename, context, doctree):
    if "body" in context:
        context["body"] = context["body"].replace('role="doc-biblioentry"', 'role="listitem"')


def setup(app):
    app.connect("html-page-context", _list_items)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
