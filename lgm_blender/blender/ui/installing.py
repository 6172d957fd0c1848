"""Installing the worker, mending and removing it: from the network, or from a folder of wheels."""

from __future__ import annotations

import shutil
from pathlib import Path

import bpy
from bpy.app.translations import pgettext_iface as iface

from ...core import lock
from ...core.system import folders
from .. import install, session
from ..recipe import OLD_CUDA
from . import translations
from .operators import Fetch, Operator

BUILDS = {
    "cpu": "PyTorch without CUDA, as no NVIDIA GPU with a driver from 525 on was found",
    "cu130": "PyTorch with CUDA 13.0 for the NVIDIA GPU",
    "cu126": "PyTorch with CUDA 12.6 for the NVIDIA GPU",
}


class LGM_OT_install_worker(Fetch, bpy.types.Operator):
    """Fetch Python packages that the models run on, PyTorch among them, or mend those that are there"""

    bl_idname = "lgm.install_worker"
    bl_label = "Install Worker"

    def invoke(self, context, event):
        session.current().suitable_build()
        return context.window_manager.invoke_props_dialog(self, width=480, confirm_text=install.label())

    def draw(self, context):
        for line in what_it_takes(session.current().suitable_build()):
            for part in translations.wrapped(line, 80):
                self.layout.label(text=part, translate=False)

    def begin(self, context):
        session.current().install()


class LGM_OT_install_from_folder(Fetch, bpy.types.Operator):
    """Install the worker without a network, from a folder of wheels: docs/install.md says how it is filled"""

    bl_idname = "lgm.install_from_folder"
    bl_label = "Install from Folder"

    directory: bpy.props.StringProperty(
        name="Folder", description="Holds the packages' wheels", subtype="DIR_PATH", options={"SKIP_SAVE"}
    )
    filter_folder: bpy.props.BoolProperty(default=True, options={"HIDDEN", "SKIP_SAVE"})

    @classmethod
    def obstacle(cls, context) -> str:
        return Operator.obstacle.__func__(cls, context)  # there is no need to go online

    def invoke(self, context, event):
        context.window_manager.fileselect_add(self)
        return {"RUNNING_MODAL"}

    def begin(self, context):
        session.current().install(Path(bpy.path.abspath(self.directory)).absolute())


class LGM_OT_remove_worker(Operator, bpy.types.Operator):
    """Delete the packages that were installed for the worker, and its logs"""

    bl_idname = "lgm.remove_worker"
    bl_label = "Remove Worker"

    @classmethod
    def obstacle(cls, context) -> str:
        return super().obstacle(context) or ("" if install.is_started() else "Nothing is installed")

    def invoke(self, context, event):
        message = iface("This gives back {:.1f} GB.").format(install.size() / 1e9)
        return context.window_manager.invoke_confirm(self, event, message=message)

    def act(self, context):
        now = session.current()
        size = install.size()
        now.end_worker(patience=0.0)
        try:
            install.remove()
        finally:
            now.forget_worker()
        self.report({"INFO"}, f"{size / 1e9:.1f} GB were given back.")
        return {"FINISHED"}


def what_it_takes(build: lock.TorchBuild | None) -> list[str]:
    """What to know before the worker is installed: what is fetched, how large it is, and where it goes.

    Args:
        build: The one for this machine, or None as long as its graphics driver has not answered.
    """
    if install.is_finished() and not install.is_outdated():
        return [iface("Looks at every file of the worker, and fetches again what is missing or damaged.")]
    if build is None:
        texts = {"cpu": iface("Without an NVIDIA GPU: {}"), "cu130": iface("With an NVIDIA GPU: {}")}
        lines = [text.format(size) for known, text in texts.items() if (size := lock.size(known))]
        lines.append(iface("The graphics driver is being asked which it is ..."))
    else:
        lines = [iface(BUILDS[build]), iface("The packages that the models need"), size_of(build)]
    folder = folders.data_folder()
    above = next(path for path in (folder, *folder.parents) if path.is_dir())
    free = shutil.disk_usage(above).free / 1e9
    lines.append(iface("It goes into {}, where {:.0f} GB are free").format(folder, free))
    check = iface("Every file is compared with the SHA-256 that came with LGM")
    lines.append(OLD_CUDA if build == "cu126" else check)
    return [line for line in lines if line]


def size_of(build: lock.TorchBuild) -> str:
    """How large the worker is with a build; an update fetches only what has changed."""
    size = lock.size(build)
    return iface("At most {}" if install.is_finished() else "{}").format(size) if size else ""


CLASSES = (LGM_OT_install_worker, LGM_OT_install_from_folder, LGM_OT_remove_worker)
