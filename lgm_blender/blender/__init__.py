"""Blender's side: everything that touches bpy. bpy is imported at registration, not before."""

import importlib

_MODULES = (
    *("ui.view_properties", "ui.preferences", "ui.properties", "ui.operators", "ui.installing", "ui.sources"),
    *("ui.cutout", "ui.panel", "ui.candidates", "ui.views", "ui.history", "ui.splats", "ui.editing", "ui.files"),
    "ui.training",
)


def register() -> None:
    """Registers the classes and opens the session. Once registered, it does nothing.

    Raises:
        RuntimeError: If another copy of the add-on is enabled. Blender shows the sentence, and leaves this one off.
    """
    import bpy

    from . import handlers, session, settings
    from .ui import editing, properties, timer, translations, view_properties

    if owner := _owner():
        if owner == __package__:
            return
        name = owner.removesuffix(".blender")
        raise RuntimeError(
            f"LGM for Blender is enabled already, as '{name}'. Disable that in the preferences to use this copy."
        )
    session.open_session(settings.user_folder() / "logs", timer.start, settings.user_folder() / "run_times.json")
    for cls in _classes():
        bpy.utils.register_class(cls)
    bpy.types.Scene.lgm = bpy.props.PointerProperty(type=properties.LGM_Settings)
    bpy.types.Object.lgm_rig = bpy.props.PointerProperty(type=view_properties.LGM_Rig)
    bpy.types.TOPBAR_MT_file_import.append(_draw_import)
    bpy.types.TOPBAR_MT_file_export.append(_draw_export)
    editing.add_menus()
    handlers.register()
    translations.register(__package__)


def unregister() -> None:
    """Gives back all of it: the worker, timers, handlers, previews and classes. Does nothing if nothing is there."""
    import bpy

    from . import handlers, session
    from .ui import editing, icons, timer, translations

    if _owner() not in ("", __package__):
        return
    handlers.unregister()
    timer.stop()
    session.close_session()
    icons.clear()
    icons.clear_files()
    if not _owner():
        return
    translations.unregister(__package__)
    editing.remove_menus()
    bpy.types.TOPBAR_MT_file_import.remove(_draw_import)
    bpy.types.TOPBAR_MT_file_export.remove(_draw_export)
    del bpy.types.Scene.lgm, bpy.types.Object.lgm_rig
    for cls in reversed(_classes()):
        bpy.utils.unregister_class(cls)


def _owner() -> str:
    """Which copy of this package is registered: as an add-on and as an extension it may be there twice. '' if none."""
    import bpy

    registered = getattr(bpy.types, "LGM_OT_generate", None)
    return registered.__module__.partition(".ui.")[0] if registered and hasattr(bpy.types.Scene, "lgm") else ""


def _classes() -> tuple[type, ...]:
    return sum((importlib.import_module(f".{name}", __package__).CLASSES for name in _MODULES), ())


def _draw_import(self, context) -> None:
    self.layout.operator("lgm.import_splats", text="Gaussian Splats (.ply/.spz/.sog/.glb/.splat)")


def _draw_export(self, context) -> None:
    self.layout.operator("lgm.export_splats", text="Gaussian Splats (.ply/.spz/.sog/.glb/.splat)")
