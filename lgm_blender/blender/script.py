"""How a file of this package that is run as a script becomes a module of it: see the first lines of batch.py."""

import importlib
import importlib.util
import pathlib
import sys


def run(file: str) -> None:
    """Imports the script again, as the module it is, and calls its `main`.

    A script belongs to no package. Where the extension is enabled, importing bpy has loaded the package, under a name
    that depends on its repository; elsewhere it is loaded from where the script lies.
    """
    path = pathlib.Path(file).resolve()
    folder = path.parents[1]
    try:
        import bpy  # noqa: F401
    except ImportError:
        sys.exit("This Python has no bpy. Run it with 'blender --background --python', or 'pip install bpy'.")
    name = next(
        (
            name
            for name, module in list(sys.modules.items())
            if getattr(module, "__file__", None) and pathlib.Path(module.__file__).resolve() == folder / "__init__.py"
        ),
        "lgm_blender",
    )
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            name, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    importlib.import_module(f"{name}.{path.parent.name}.{path.stem}").main()
