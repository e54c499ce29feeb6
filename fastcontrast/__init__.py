import importlib
import importlib.util
import sys
from importlib.abc import MetaPathFinder

__version__ = "0.1.0"


class _AfterTimm(MetaPathFinder):
    """Has timm know `resnet18_small` and the like (see `stems`) as soon as both are imported, in whichever order

    timm is not imported for that: it takes seconds, and the command line answers before."""
    def find_spec(self, name, path=None, target=None):
        if name != 'timm': return None
        sys.meta_path.remove(self)
        try: spec = importlib.util.find_spec(name)
        finally: sys.meta_path.insert(0, self)  # others look for timm, and do not import it
        if spec is None: return None
        run = spec.loader.exec_module
        def run_and_register(module):
            run(module)
            if self in sys.meta_path: sys.meta_path.remove(self)
            importlib.import_module('fastcontrast.stems')
        spec.loader.exec_module = run_and_register
        return spec


if 'timm' in sys.modules: importlib.import_module('fastcontrast.stems')
else: sys.meta_path.insert(0, _AfterTimm())
