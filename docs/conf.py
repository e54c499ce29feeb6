"""What Sphinx is told; docs/build.py writes the sources and calls it."""
from reference import source_link

import fastcontrast

project, author, release = 'fastcontrast', 'the fastcontrast authors', fastcontrast.__version__
extensions = ['myst_nb', 'sphinx.ext.autodoc', 'sphinx.ext.linkcode', 'mathml', 'reference']

# pages: notebooks with the outputs that they are committed with
root_doc = 'index'
smartquotes = False # a quoted value stays what is typed
nb_execution_mode = 'off'
nb_merge_streams = True
nb_code_prompt_show = 'The source'
nb_code_prompt_hide = 'The source'
myst_enable_extensions = ['dollarmath', 'amsmath']
myst_heading_anchors = 4
myst_url_schemes = ['http', 'https', 'mailto']

# the reference: names without their module, defaults as in the source, types beside what the parameters are
add_module_names = False
autodoc_member_order = 'bysource'
autodoc_typehints = 'none'
autodoc_inherit_docstrings = False
toc_object_entries_show_parents = 'hide'
linkcode_resolve = source_link

html_theme = 'furo'
pygments_dark_style = 'github-dark'
html_title = 'fastcontrast'
html_math_renderer = 'mathml'
html_static_path = ['static']
html_css_files = ['site.css']
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
