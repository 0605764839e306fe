"""Importing the scripts of benchmarks/, which are not of the package."""

import contextlib
import importlib
import pathlib
import sys

BENCHMARKS = pathlib.Path(__file__).parents[2] / "benchmarks"


@contextlib.contextmanager
def importable(directory=BENCHMARKS):
    """Context in which scripts find each other, as when they are run.

    Args:
        directory: That of the script that is run.

    Yields:
        Function from a script's name to its module, new in each context.
    """
    path = list(sys.path)
    _forget()
    sys.path.insert(0, str(directory))
    importlib.invalidate_caches()
    try:
        yield importlib.import_module
    finally:
        sys.path[:] = path
        _forget()


def _forget():
    for name, module in list(sys.modules.items()):
        spec = vars(module).get("__spec__")  # `getattr` would load lazy ones.
        places = [spec.origin or ""] if spec else []
        if spec and spec.submodule_search_locations:
            places += spec.submodule_search_locations
        if any(place.startswith(str(BENCHMARKS)) for place in places):
            del sys.modules[name]
