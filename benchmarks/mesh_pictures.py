"""docs/meshing.webp, made by Blender: of each object its splats, the mesh, wires, and the texture.

    python -m lgm_blender.worker generate --image docs/samples/cactus.png --output out
    python benchmarks/mesh_pictures.py --data objects.zip --objects 00979 02347 --splats out/cactus.ply

The Python needs bpy and the worker's packages. Splats and mesh are seen by one camera; the wires, of triangles and of
quads, are the part of that picture which a frame marks, three times as large.
"""

import argparse
import sys
import tempfile
import zipfile
from pathlib import Path

import bpy
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

sys.path.insert(0, str(Path(__file__).parents[1]))
from lgm_blender.blender import compat
from lgm_blender.blender.scene import meshes, render, splats
from lgm_blender.core import cameras
from lgm_blender.core.formats.gltf import read_glb
from lgm_blender.core.formats.ply import read_ply, write_ply
from lgm_blender.core.gaussians import Gaussians
from lgm_blender.training.data import objects
from lgm_blender.training.data.mesh_renderer import ViewRenderer
from lgm_blender.worker.lgm import load_lgm
from lgm_blender.worker.mesh_file import mesh_file
from lgm_blender.worker.meshing import MeshSettings

ROOT = Path(__file__).parents[1]
CELL, GAP, TEXT = 204, 8, 24  # pixels: a picture's side, the room between them, a line's height
GREY, INK = (236, 236, 234), (40, 40, 40)
FOV, AZIMUTH, ELEVATION, ZOOM = 30.0, 35.0, 20.0, 3
TITLES = ("splats", "mesh", f"its wires, {ZOOM} times as large", "with --quads", "texture of the mesh")
WIRE = 1.2e-3  # thickness, of the longest side


def reconstruct(data: Path, names: list[str], folder: Path) -> list[Path]:
    """What the bundled LGM makes of four true views of objects of `data`, as PLY files named by their captions."""
    poses, renderer = cameras.orbit_cameras(), ViewRenderer(256, distance_size=0)
    model = load_lgm(ROOT / "lgm_blender/weights/mini/lgm", torch.device("cpu"))
    captions, paths = {entry["id"]: entry["caption"] for entry in objects.read_index(data)}, []
    with zipfile.ZipFile(data) as archive:
        for name in names:
            pixels = renderer.render(objects.read_mesh(archive, name), poses)[0]
            pictures = torch.from_numpy(pixels.astype(np.float32) / 255).permute(0, 3, 1, 2)[None]
            with torch.no_grad():
                found = model(pictures[:, :, :3] + 1 - pictures[:, :, 3:], torch.from_numpy(poses)[None])[0]
            paths.append(folder / f"{captions[name]}.ply")
            write_ply(paths[-1], Gaussians.from_array(found.numpy()).prune())
    return paths


def show_wires(mesh: bpy.types.Object) -> None:
    """Makes a mesh light clay with a dark wire along every edge; the shader's wires would cut quads in two."""
    mesh.data.materials.clear()
    for name, color in (("Clay", (0.7, 0.7, 0.7, 1)), ("Wire", (0.01, 0.02, 0.05, 1))):
        material = bpy.data.materials.new(name)
        tree = compat.node_tree(material)
        shader = next(node for node in tree.nodes if node.type == "BSDF_PRINCIPLED")
        shader.inputs["Base Color"].default_value, shader.inputs["Roughness"].default_value = color, 1.0
        mesh.data.materials.append(material)
    bpy.context.view_layer.update()  # its dimensions
    wires = mesh.modifiers.new("Wires", "WIREFRAME")
    wires.use_replace, wires.use_even_offset, wires.material_offset = False, False, 1
    wires.thickness = WIRE * max(mesh.dimensions)


def light(mesh: bpy.types.Object, pose: np.ndarray) -> None:
    """A camera, a large soft sun, a bright sky, and a floor of which only the shadow is seen."""
    scene, cycles = bpy.context.scene, bpy.context.scene.cycles
    scene.camera = render.camera_from_pose(pose, FOV)
    sun = bpy.data.objects.new("Sun", bpy.data.lights.new("Sun", "SUN"))
    sun.data.energy, sun.data.angle, sun.rotation_euler = 1.4, 0.9, (0.7, 0.1, 0.2)
    floor = bpy.data.objects.new("Floor", bpy.data.meshes.new("Floor"))
    floor.data.from_pydata([(-9, -9, 0), (9, -9, 0), (9, 9, 0), (-9, 9, 0)], [], [(0, 1, 2, 3)])
    floor.location, floor.is_shadow_catcher = mesh.location, True
    for thing in (scene.camera, sun, floor):
        scene.collection.objects.link(thing)
    scene.world = bpy.data.worlds.new("Sky")
    scene.world.use_nodes = True
    scene.world.node_tree.nodes["Background"].inputs["Color"].default_value = (0.55, 0.55, 0.55, 1)
    scene.view_settings.view_transform = "Standard"
    scene.render.engine, scene.render.film_transparent, cycles.samples = "CYCLES", True, 48
    scene.render.image_settings.color_mode = "RGBA"


def shoot(path: Path, zoom: int = 1) -> Image.Image:
    """The scene's picture on grey: all of it, or the middle `zoom` times as large."""
    settings = bpy.context.scene.render
    settings.filepath, settings.resolution_x, settings.resolution_y = str(path), CELL * zoom, CELL * zoom
    settings.use_border = settings.use_crop_to_border = zoom > 1
    settings.border_min_x = settings.border_min_y = 0.5 - 0.5 / zoom
    settings.border_max_x = settings.border_max_y = 0.5 + 0.5 / zoom
    bpy.ops.render.render(write_still=True)
    return Image.alpha_composite(Image.new("RGBA", (CELL, CELL), GREY), Image.open(path).resize((CELL, CELL)))


def row(file: Path, folder: Path) -> tuple[list[Image.Image], str]:
    """The pictures of a file's splats, and what to write below them."""
    done = mesh_file(file, folder, formats=("glb",))
    joined = mesh_file(file, folder, MeshSettings(quads=True), formats=("glb",))
    bpy.ops.wm.read_factory_settings(use_empty=True)
    glb = read_glb(done.files[0])
    cloud = splats.add_splats(read_ply(file), "Splats", stand=False)
    mesh = meshes.add_mesh(glb, "Mesh", location=None)
    bpy.context.view_layer.update()  # its place in the world
    pose = render.fitted_pose([mesh], AZIMUTH, ELEVATION, FOV)
    look = {"samples": 6, "background": tuple(c / 255 for c in GREY), "pose": pose, "fov_y": FOV}
    pictures = [Image.open(render.render_objects(cloud, folder / "splats.png", size=(CELL, CELL), **look))]
    bpy.data.objects.remove(cloud)
    light(mesh, pose)
    pictures.append(shoot(folder / "mesh.png"))
    low, high = CELL / 2 - CELL / 2 / ZOOM, CELL / 2 + CELL / 2 / ZOOM
    ImageDraw.Draw(pictures[1]).rectangle((low, low, high, high), outline=(90, 90, 90))
    show_wires(mesh)
    pictures.append(shoot(folder / "wires.png", ZOOM))
    bpy.data.objects.remove(mesh)
    show_wires(meshes.add_mesh(read_glb(joined.files[0]), "Quads", location=None))
    pictures.append(shoot(folder / "quads.png", ZOOM))
    (folder / "texture.png").write_bytes(glb.texture)
    pictures.append(Image.open(folder / "texture.png").resize((CELL, CELL), Image.Resampling.LANCZOS))
    faces = f"{done['faces']:,} triangles, or {joined['faces']:,} faces with --quads"
    return pictures, f"{file.stem}: {done['gaussians']:,} splats; {faces}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="objects.zip")
    parser.add_argument("--objects", nargs="*", default=[], help="ids in it, which LGM is shown from four sides")
    parser.add_argument("--splats", nargs="*", type=Path, default=[], help="PLY files")
    parser.add_argument("--output", type=Path, default=ROOT / "docs/meshing.webp")
    options = parser.parse_args()
    splats.MIN_TRANSPARENT_BOUNCES = 512  # no speckles where hundreds of splats lie behind each other
    with tempfile.TemporaryDirectory() as folder:
        made = reconstruct(options.data, options.objects, Path(folder)) if options.objects else []
        rows = [row(file, Path(folder)) for file in [*options.splats, *made]]
    step, font = CELL + GAP, ImageFont.load_default(size=14)
    sheet = Image.new("RGB", (len(TITLES) * step + GAP, TEXT + GAP + len(rows) * (step + TEXT)), "white")
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(TITLES):
        draw.text((GAP + column * step, GAP), title, INK, font)
    for number, (pictures, caption) in enumerate(rows):
        top = TEXT + GAP + number * (step + TEXT)
        for column, picture in enumerate(pictures):
            sheet.paste(picture.convert("RGB"), (GAP + column * step, top))
        draw.text((GAP, top + CELL + 4), caption, INK, font)
    sheet.save(options.output, quality=85, method=6)
    print(f"{options.output}: {options.output.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
