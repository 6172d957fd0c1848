"""The four views of a scene: where they come from, and what is asked of the worker about them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import bpy
import numpy as np

from ..core.errors import LGMError
from ..core.messages import VIEW_NAMES, ReconstructRequest, SampleRequest, SampleResult
from . import settings
from .scene import capture, images, view_images, view_rig

GENERATED = "lgm_generated"  # custom property of an image: whether a model made it


def fill(
    scene: bpy.types.Scene,
    pictures: Sequence[np.ndarray | None],
    *,
    generated: Sequence[bool],
    elevation: float,
    facts: dict[str, Any],
) -> None:
    """Puts pictures into a scene's views.

    Args:
        scene: Whose views.
        pictures: In the order of VIEW_NAMES, see `view_images.read_pixels`; None leaves what is there.
        generated: Which of them a model made.
        elevation: Degrees of the four cameras above the object.
        facts: How the views were made.
    """
    views = scene.lgm.views
    for view, pixels, made in zip(VIEW_NAMES, pictures, generated, strict=True):
        if pixels is not None:
            image = view_images.put_pixels(pixels, f"LGM {view.capitalize()}", getattr(views, view))
            image[GENERATED] = made
            setattr(views, view, image)
    views.cut_out, views.elevation, views.facts = False, elevation, json.dumps(facts, ensure_ascii=False)


def fill_from_candidate(scene: bpy.types.Scene, result: SampleResult, seed: int) -> None:
    """Puts a candidate's views into a scene's; those that were kept stay as they are.

    Raises:
        LGMError: If its files are gone.
    """
    candidate = next(candidate for candidate in result.candidates if candidate.seed == seed)
    kept = result.settings.get("kept") or [""] * len(VIEW_NAMES)
    pictures = [
        None if keep else view_images.read_pixels(file) for keep, file in zip(kept, candidate.views, strict=True)
    ]
    fill(
        scene,
        pictures,
        generated=result.settings["generated"],
        elevation=result.settings["elevation"],
        facts=candidate_facts(result, seed),
    )


def candidate_facts(result: SampleResult, seed: int) -> dict[str, Any]:
    """What a result made of a candidate says of how its views were made."""
    names = ("image", "prompt", "negative_prompt", "steps", "guidance", "view_samples", "scheduler", "matting")
    return {name: result.settings[name] for name in names if name in result.settings} | {"seed": seed}


def fill_from_cameras(scene: bpy.types.Scene, folder: Path, samples: int = view_rig.SAMPLES) -> None:
    """Renders a scene's views with its cameras.

    Raises:
        LGMError: If there are none, or they see nothing.
    """
    views = scene.lgm.views
    if not view_rig.is_rig(views.rig):
        raise LGMError("There are no cameras around the object. Add them first.")
    files = view_rig.render_views(views.rig, scene, folder, samples=samples)
    pictures = [view_images.read_pixels(file) for file in files]
    elevation = views.rig.lgm_rig.elevation
    fill(scene, pictures, generated=[False] * 4, elevation=elevation, facts={"cameras": views.rig.name})


def fill_from_viewport(scene: bpy.types.Scene) -> bool:
    """Draws a scene's views as its cameras see them, shaded as a 3D view of it is; whether there is such a view.

    Raises:
        LGMError: If there are no cameras, or they see nothing.
    """
    found = [
        (window, area)
        for window in ([] if bpy.app.background else bpy.context.window_manager.windows)
        for area in window.screen.areas
        if window.scene == scene and area.type == "VIEW_3D"
    ]
    if not found:
        return False
    rig, (window, area) = scene.lgm.views.rig, found[0]
    wanted = view_rig.seen_objects(rig, scene) if view_rig.is_rig(rig) else []
    if not wanted:
        raise LGMError("There is nothing that the cameras could see. Select objects and add the cameras again.")
    with bpy.context.temp_override(window=window, area=area):
        pictures = capture.capture_cameras(bpy.context, area, view_rig.cameras(rig), wanted, view_rig.SIZE)
    elevation = rig.lgm_rig.elevation
    fill(scene, pictures, generated=[False] * 4, elevation=elevation, facts={"cameras": rig.name})
    return True


def missing(scene: bpy.types.Scene) -> str:
    """Which of a scene's views are missing, a sentence, or ''."""
    names = [view for view, image in zip(VIEW_NAMES, scene.lgm.views.images(), strict=True) if image is None]
    return f"There is no view from the {' and the '.join(names)}. Choose one." if names else ""


def reconstruct_request(scene: bpy.types.Scene, folder: Path, **values: Any) -> ReconstructRequest:
    """What is asked for a scene's views.

    Args:
        folder: Gets their files.
        values: More of the request.

    Raises:
        LGMError: If one is missing, or has no pixels.
    """
    if sentence := missing(scene):
        raise LGMError(sentence)
    views = scene.lgm.views
    files = _files(views, [True] * len(VIEW_NAMES), folder)
    given = {
        "job": "",
        "output": str(settings.output_folder(scene.lgm.output)),
        "views": files,
        "framed": not views.cut_out,
        "generated": [bool(image.get(GENERATED)) and not views.cut_out for image in views.images()],
        "elevation": views.elevation,
        "facts": json.loads(views.facts or "{}"),
        "name": images.file_stem(bpy.path.display_name_from_filepath(bpy.data.filepath) or "views"),
        "preset": scene.lgm.chosen_preset(),
        "device": settings.preference("device"),
    }
    return ReconstructRequest(**given | values)


def live_request(scene: bpy.types.Scene, folder: Path) -> ReconstructRequest:
    """The same, of which nothing stays but splats in the scene."""
    return reconstruct_request(scene, folder, output=str(folder), name="live", quick=True, overwrite=True)


def sample_request(
    scene: bpy.types.Scene, folder: Path, output: Path, image: Path | None, **values: Any
) -> SampleRequest:
    """What is asked for the views that a scene does not keep.

    Args:
        folder: Gets the files of those that it keeps.
        output: Gets the sampled ones.
        image: The input image.
        values: More of the request.

    Raises:
        LGMError: If it keeps all of them or none.
    """
    views = scene.lgm.views
    keep = [keep and image is not None for keep, image in zip(views.kept(), views.images(), strict=True)]
    if all(keep) or not any(keep):
        raise LGMError(
            "Nothing is to be sampled, or all of it. Mark the views that stay with their pins: at least one, not all."
        )
    given = {
        "job": "",
        "output": str(output),
        "image": None if image is None else str(image),
        "prompt": scene.lgm.prompt.strip(),
        "kept": _files(views, keep, folder),
        "elevation": views.elevation,
        "preset": scene.lgm.chosen_preset(),
        "device": settings.preference("device"),
    }
    return SampleRequest(**given | values)


def _files(views: Any, wanted: Sequence[bool], folder: Path) -> list[str]:
    """Files of the wanted views, '' for the others."""
    return [
        str(view_images.view_file(image, folder, view)) if want else ""
        for view, image, want in zip(VIEW_NAMES, views.images(), wanted, strict=True)
    ]
