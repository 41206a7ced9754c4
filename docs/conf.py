"""Configuration of Sphinx, whose source folder docs/build_site.py writes: notebooks are executed before, not here."""
from configparser import ConfigParser
from pathlib import Path

DOCS = Path(__file__).resolve().parent
_settings = ConfigParser(delimiters=["="])
_settings.read(DOCS.parent / "settings.ini", encoding="utf-8")
_settings = _settings["DEFAULT"]

project, author, release = _settings["lib_name"], _settings["author"], _settings["version"]
copyright, language = _settings["copyright"], "en"
extensions = ["myst_nb", "sphinx.ext.mathjax", "sphinx_copybutton", "sphinx_design"]

nb_execution_mode = "off"
nb_ipywidgets_js = {}                 # the default loads scripts from the network; pages show their static copies
nb_output_stderr = "remove"           # progress bars and logs
nb_mime_priority_overrides = [("html", "application/vnd.jupyter.widget-view+json", None)]
nb_number_source_lines = False
myst_enable_extensions = ["amsmath", "attrs_block", "colon_fence", "deflist", "dollarmath", "html_image"]
myst_heading_anchors = 4
myst_dmath_double_inline = True
myst_dmath_allow_digits = False       # "$5 and $6" is no formula
suppress_warnings = ["toc.empty_glob", "mystnb.unknown_mime_type"]

smartquotes_action = "qe"             # quotes and ellipses; "--" begins the name of an option

html_theme = "furo"
html_title = project
html_static_path = ["static"]
html_css_files = ["site.css", "figures.css"]  # docs/build_site.py writes the second
html_copy_source = html_show_sourcelink = False
html_theme_options = {"navigation_with_keys": True, "top_of_page_buttons": []}
mathjax_path = "mathjax/tex-chtml.js" # the local copy that docs/build_site.py makes
mathjax3_config = {"options": {"enableMenu": False}}
copybutton_selector = "div.highlight-ipython3 pre, div.highlight-python pre, div.highlight-bash pre"

add_module_names = False
python_maximum_signature_line_length = 60   # longer ones have a line for every parameter
python_trailing_comma_in_multi_line_signatures = False
toc_object_entries_show_parents = "hide"
