import os

import ftkit
from ftkit._images.findings import KINDS

project = "ftkit"
author = "The ftkit developers"
copyright = "2026, the ftkit developers"
release = version = ftkit.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
]
if "READTHEDOCS" in os.environ:  # it fetches lists of names, and elsewhere a build needs no network
    extensions.append("sphinx.ext.intersphinx")
intersphinx_mapping = {
    "numpy": ("https://numpy.org/doc/stable", None),
    "python": ("https://docs.python.org/3", None),
    "torch": ("https://docs.pytorch.org/docs/stable", None),
}
copybutton_prompt_text = "$ "  # what is copied from a console: the commands, without the prompt and the output
myst_enable_extensions = ["colon_fence", "deflist", "substitution"]
myst_heading_anchors = 3

# The table of docs/reference/data.md; an asterisk in it is one of a file pattern.
_rows = [
    f"| `{name}` | {kind.severity} | {kind.family} | {kind.effect} | {kind.remedy} |".replace("*", "\\*")
    for name, kind in KINDS.items()
]
_head = ["| kind | severity | family | what it does | what to do |", "|---|---|---|---|---|"]
myst_substitutions = {"kinds_of_findings": "\n".join(_head + _rows)}
exclude_patterns = ["_build"]

autodoc_mock_imports = ["lightning", "pytorch_lightning", "transformers"]  # the callbacks need no more than their names
autodoc_typehints = "description"
autodoc_type_aliases = {"Selector": "ftkit.selection.Selector"}
python_use_unqualified_type_names = True  # a type is called as users import it, wherever it lives
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "inherited-members": "DataLoader, tuple, BaseException, Protocol"}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False

# Types of other projects are written as their own documentation names them; they have no page here.
nitpick_ignore_regex = [("py:.*", r"^(?!ftkit\b).*")]
nitpick_ignore = [("py:class", "ftkit._groups.recipe._Key")]  # a type variable: any selector

highlight_options = {"python": {"stripnl": True}}  # no blank lines after a part of a file

html_theme = "furo"
html_title = "ftkit"
html_static_path = ["_static"]
html_css_files = ["ftkit.css"]
