"""Meshes to training views: textured objects from an objects.zip, drawn by moderngl without a screen."""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image

from ...core.cameras import FAR, FOV_Y, VIEW_AZIMUTHS, orbit_camera

OBJECT_RADIUS = 0.62  # what a camera at 1.5 with LGM's field of view sees whole: 1.5 · sin(24.55°)
RING, RAISED, FREE = 16, 8, 12  # views of each object: elevation 0, one other elevation, anywhere
VIEWS = RING + RAISED + FREE

_VERTEX = """
#version 330
uniform mat4 view_projection;
in vec3 position; in vec2 uv; in vec3 color; in float layer;
out vec3 world; out vec2 v_uv; out vec3 v_color; flat out float v_layer;
void main() {
    world = position; v_uv = uv; v_color = color; v_layer = layer;
    gl_Position = view_projection * vec4(position, 1.0);
}
"""
_FRAGMENT = """
#version 330
uniform sampler2DArray textures; uniform vec3 eye;
in vec3 world; in vec2 v_uv; in vec3 v_color; flat in float v_layer;
out vec4 result;
void main() {
    vec4 base = vec4(v_color, 1.0);
    vec4 texel = texture(textures, vec3(v_uv, max(v_layer, 0.0)));
    if (v_layer >= 0.0) base *= texel;
    if (base.a < 0.5) discard;
    // Faces are not wound consistently, so the normal is turned to the eye; the light is fixed to the object, so that
    // the views of one object agree.
    vec3 normal = normalize(cross(dFdx(world), dFdy(world)));
    if (dot(normal, eye - world) < 0.0) normal = -normal;
    float light = 0.8 + 0.2 * dot(normal, normalize(vec3(0.3, 0.85, 0.45)));
    result = vec4(base.rgb * light, 1.0);
}
"""
_DISTANCE = """
#version 330
uniform sampler2DArray textures; uniform vec3 eye;
in vec3 world; in vec2 v_uv; in vec3 v_color; flat in float v_layer;
out float result;
void main() {
    if (v_layer >= 0.0 && texture(textures, vec3(v_uv, v_layer)).a < 0.5) discard;
    result = distance(world, eye);
}
"""
DISTANCE_UNIT = 1e-4  # of the distances that are kept as int16


@dataclass(frozen=True)
class TexturedMesh:
    """Triangles ready to draw.

    Attributes:
        corners: [3F, 9] float32: position xyz (y up), uv, colour rgb 0 to 1, texture layer or -1.
        textures: [T, 256, 256, 4] uint8, at least one.
    """

    corners: np.ndarray
    textures: np.ndarray


def read_index(path: str | Path) -> list[dict]:
    """The objects of an objects.zip: id, split, source, licence, caption and more."""
    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.read("index.json"))


def read_mesh(archive: zipfile.ZipFile, object_id: str, radius: float = OBJECT_RADIUS) -> TexturedMesh:
    """One object of an objects.zip, scaled so that a bounding-box diagonal of 1.4 becomes 2 · radius."""
    with np.load(io.BytesIO(archive.read(f"{object_id}.npz"))) as data:
        faces = data["faces"].astype(np.int64)
        positions = data["vertices"].astype(np.float32)[faces] * (radius / 0.7)
        uv = data["uv"].astype(np.float32)[faces]
        material = data["face_material"]
        colors = data["material_color"].astype(np.float32)[material, :3] / 255
        layers = data["material_texture"].astype(np.float32)[material]
        count = int(data["material_texture"].max(initial=-1)) + 1
        textures = [
            np.asarray(Image.open(io.BytesIO(data[f"texture_{i}"].tobytes())).convert("RGBA").resize((256, 256)))
            for i in range(count)
        ]
    corners = np.concatenate(
        [
            positions,
            uv * [1, -1] + [0, 1],
            np.repeat(colors[:, None], 3, axis=1),
            np.broadcast_to(layers[:, None, None], (len(faces), 3, 1)),
        ],
        axis=2,
    )
    blank = np.full((1, 256, 256, 4), 255, np.uint8)
    return TexturedMesh(corners.reshape(-1, 9).astype(np.float32), np.stack(textures) if textures else blank)


class ViewRenderer:
    """Draws meshes on a transparent background with moderngl (EGL: a GPU's, or Mesa's on a CPU)."""

    def __init__(self, size: int = 256, samples: int = 8, distance_size: int = 128):
        import moderngl

        self.size, self.distance_size = size, distance_size
        self.gl = moderngl.create_standalone_context(backend="egl")
        self.gl.enable(moderngl.DEPTH_TEST)
        samples = min(samples, self.gl.max_samples)
        self.target = self.gl.framebuffer(
            [self.gl.renderbuffer((size, size), 4, samples=samples)],
            self.gl.depth_renderbuffer((size, size), samples=samples),
        )
        self.resolved = self.gl.framebuffer([self.gl.renderbuffer((size, size), 4)])
        self.program = self.gl.program(vertex_shader=_VERTEX, fragment_shader=_FRAGMENT)
        distances = (distance_size, distance_size)
        self.distance_target = self.gl.framebuffer(
            [self.gl.renderbuffer(distances, 1, dtype="f4")], self.gl.depth_renderbuffer(distances)
        )
        self.distance_program = self.gl.program(vertex_shader=_VERTEX, fragment_shader=_DISTANCE)

    def draw(self, mesh: TexturedMesh, poses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Views of a mesh, and how far away its surface is.

        Args:
            mesh: The mesh.
            poses: [V, 4, 4], camera-to-world.

        Returns:
            Views [V, size, size, 4] uint8, colour premultiplied with alpha; and the distances from the eye to what the
            pixels' centres see [V, distance_size, distance_size] int16, in DISTANCE_UNIT, 0 where there is nothing.
        """
        import moderngl

        layers = len(mesh.textures)
        textures = self.gl.texture_array((256, 256, layers), 4, np.ascontiguousarray(mesh.textures).tobytes())
        textures.build_mipmaps()
        textures.filter = (moderngl.LINEAR_MIPMAP_LINEAR, moderngl.LINEAR)
        textures.anisotropy = 8.0
        textures.use(0)
        vertices = self.gl.buffer(np.ascontiguousarray(mesh.corners).tobytes())
        views = np.empty((len(poses), self.size, self.size, 4), np.uint8)
        distances = np.empty((len(poses), self.distance_size, self.distance_size), np.int16)
        projection = _projection(0.1, FAR + 1)
        kinds = (
            (self.program, self.target, "3f 2f 3f 1f", ("position", "uv", "color", "layer")),
            (self.distance_program, self.distance_target, "3f 2f 3x4 1f", ("position", "uv", "layer")),
        )
        for program, target, layout, names in kinds:
            array = self.gl.vertex_array(program, [(vertices, layout, *names)])
            for i, pose in enumerate(poses):
                target.use()
                target.clear(0, 0, 0, 0)
                matrix = projection @ np.linalg.inv(pose.astype(np.float64))
                program["view_projection"].write(np.ascontiguousarray(matrix.T, np.float32).tobytes())
                program["eye"].value = tuple(float(x) for x in pose[:3, 3])
                array.render()
                if target is self.target:
                    self.gl.copy_framebuffer(self.resolved, target)
                    flat = np.frombuffer(self.resolved.read(components=4, alignment=1), np.uint8)
                    views[i] = flat.reshape(views.shape[1:])[::-1]
                else:
                    flat = np.frombuffer(target.read(components=1, alignment=1, dtype="f4"), np.float32)
                    distances[i] = np.round(flat.reshape(distances.shape[1:])[::-1] / DISTANCE_UNIT)
            array.release()
        vertices.release()
        textures.release()
        return views, distances


def _projection(near: float, far: float) -> np.ndarray:
    cotangent = 1 / np.tan(0.5 * np.radians(FOV_Y))
    result = np.zeros((4, 4))
    result[0, 0] = result[1, 1] = cotangent
    result[2, 2], result[2, 3] = (far + near) / (near - far), 2 * far * near / (near - far)
    result[3, 2] = -1
    return result


def view_poses(object_id: str) -> tuple[np.ndarray, np.ndarray]:
    """An object's training cameras, the same every time.

    Returns:
        Poses [VIEWS, 4, 4] and their (elevation, azimuth) [VIEWS, 2] in degrees: RING views at elevation 0, RAISED ones
        at one other elevation, both all round at even steps, then FREE ones anywhere from -30 to 50 degrees.
    """
    rng = np.random.default_rng(zlib.crc32(object_id.encode()))
    raised = rng.uniform(-15, 35)
    start = rng.uniform(0, 360)
    angles = [(0.0, 360 / RING * i) for i in range(RING)]
    angles += [(raised, start + 360 / RAISED * i) for i in range(RAISED)]
    angles += [(rng.uniform(-30, 50), rng.uniform(0, 360)) for _ in range(FREE)]
    return np.stack([orbit_camera(*angle) for angle in angles]), np.array(angles, np.float32)


def evaluation_poses(object_id: str) -> tuple[np.ndarray, np.ndarray]:
    """The fixed cameras of every evaluation: four inputs at elevation 0, then eight others at -10 to 30 degrees."""
    angles = [(0.0, azimuth) for azimuth in VIEW_AZIMUTHS]
    angles += [(elevation, 22.5 + 45 * i) for i, elevation in enumerate((0, 20, -10, 30, 10, 20, 0, 30))]
    return np.stack([orbit_camera(*angle) for angle in angles]), np.array(angles, np.float32)


Cameras = Callable[[str], tuple[np.ndarray, np.ndarray]]


def _draw_part(
    path: str, ids: list[str], size: int, output: str, offset: int, cameras: Cameras, variant: int
) -> list[str]:
    from .varied import varied

    views = np.lib.format.open_memmap(output, mode="r+")
    distances = np.lib.format.open_memmap(distance_path(output), mode="r+")
    renderer = ViewRenderer(size, distance_size=distances.shape[-1])
    empty = []
    with zipfile.ZipFile(path) as archive:
        for i, object_id in enumerate(ids):
            mesh = read_mesh(archive, object_id)
            mesh = varied(mesh, object_id, variant) if variant else mesh
            drawn, distances[offset + i] = renderer.draw(mesh, cameras(object_id)[0])
            views[offset + i] = drawn
            if drawn[..., 3].any(axis=(1, 2)).mean() < 0.9:
                empty.append(object_id)
    return empty


def distance_path(path: str | Path) -> Path:
    """Where the distances of the views at `path` lie."""
    return Path(path).with_suffix(".distances.npy")


def draw_objects(
    path: str | Path,
    ids: list[str],
    size: int,
    output: str | Path,
    processes: int = 4,
    cameras: Cameras = view_poses,
    variant: int = 0,
) -> list[str]:
    """Draw objects into one .npy file [objects, views, size, size, 4] uint8, premultiplied, and their distances.

    The distances (see ViewRenderer.draw) are half as wide, as mini's Gaussians are, and lie in `distance_path(output)`.

    Args:
        path: An objects.zip.
        ids: The objects.
        size: Width and height of the views in pixels.
        output: The .npy file.
        processes: How many draw at once.
        cameras: An object's id to its poses and angles: `view_poses` or `evaluation_poses`.
        variant: 0 for the objects as they are, or a number that changes their shapes and colours (varied.py).

    Returns:
        The ids of objects of which little or nothing can be seen.
    """
    shape = (len(ids), len(cameras(ids[0])[0]), size, size, 4)
    np.lib.format.open_memmap(output, mode="w+", dtype=np.uint8, shape=shape).flush()
    halves = (*shape[:2], size // 2, size // 2)
    np.lib.format.open_memmap(distance_path(output), mode="w+", dtype=np.int16, shape=halves).flush()
    step = max(1, -(-len(ids) // (processes * 4)))
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        parts = [
            pool.submit(_draw_part, str(path), ids[i : i + step], size, str(output), i, cameras, variant)
            for i in range(0, len(ids), step)
        ]
        return [object_id for part in parts for object_id in part.result()]
