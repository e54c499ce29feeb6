"""Formulas as MathML, which browsers draw themselves: the site needs no script from elsewhere, and no network."""
from docutils import nodes
from latex2mathml.converter import convert


def formula(self, node):
    "A formula in a line, or one that stands alone"
    alone = isinstance(node, nodes.math_block)
    text = convert(node.astext(), display='block' if alone else 'inline')
    self.body.append(f'<div class="formula">{text}</div>' if alone else text)
    raise nodes.SkipNode


def setup(app):
    app.add_html_math_renderer('mathml', (formula, None), (formula, None))
    return dict(parallel_read_safe=True, parallel_write_safe=True)
