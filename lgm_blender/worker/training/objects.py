"""Meshes to training views: textured objects from an objects.zip, drawn by moderngl without a screen."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import current_process, get_context
from pathlib import Path

import numpy as np
from PIL import Image

from ...core.cameras import (  # noqa: F401 - training finds all of them here
    FAR,
    FOV_Y,
    FREE,
    LIGHT,
    OBJECT_RADIUS,
    RAISED,
    RING,
    SHADE,
    VIEWS,
    evaluation_poses,
    view_poses,
)
from ...core.errors import LGMError

EGL_DEVICES = "LGM_BLENDER_EGL_DEVICES"  # how many GPUs draw: processes take them by turns

_VERTEX = """
#version 330
uniform mat4 view_projection;
in vec3 position; in vec2 uv; in vec4 color;
out vec3 world; out vec2 v_uv; out vec4 v_color;
void main() {
    world = position; v_uv = uv; v_color = color;
    gl_Position = view_projection * vec4(position, 1.0);
}
"""
_FRAGMENT = """
#version 330
uniform sampler2D picture; uniform bool textured; uniform vec3 eye; uniform vec3 sun; uniform vec2 shade;
uniform float cutoff;  // alpha below which nothing is drawn, and from which all is; negative: alpha blends
in vec3 world; in vec2 v_uv; in vec4 v_color;
out vec4 result;
vec3 to_srgb(vec3 c) { return mix(1.055 * pow(c, vec3(1.0 / 2.4)) - 0.055, 12.92 * c, lessThan(c, vec3(0.0031308))); }
vec3 to_linear(vec3 c) { return mix(pow((c + 0.055) / 1.055, vec3(2.4)), c / 12.92, lessThan(c, vec3(0.04045))); }
void main() {
    vec4 texel = textured ? texture(picture, v_uv) : vec4(1.0);
    float alpha = v_color.a * texel.a;
    // What is cut out has edges as smooth as a triangle's: its alpha, made steep, says how many samples it covers.
    if (cutoff > 0.0) alpha = clamp((alpha - cutoff) / max(fwidth(alpha), 1e-4) + 0.5, 0.0, 1.0);
    if (cutoff == 0.0) alpha = 1.0;
    if (alpha <= 0.0) discard;
    vec3 base = texel.rgb;
    if (v_color.rgb != vec3(1.0)) base = to_srgb(clamp(v_color.rgb * to_linear(base), 0.0, 1.0));
    // Faces are not wound consistently, so the normal is turned to the eye; the light is fixed to the object, so that
    // the views of one object agree.
    vec3 normal = normalize(cross(dFdx(world), dFdy(world)));
    if (dot(normal, eye - world) < 0.0) normal = -normal;
    float light = shade.x + shade.y * dot(normal, sun);
    result = vec4(base * light * (cutoff < 0.0 ? alpha : 1.0), alpha);
}
"""
_COVERAGE = (0x809E, 0x809F)  # GL_SAMPLE_ALPHA_TO_COVERAGE, GL_SAMPLE_ALPHA_TO_ONE
_DISTANCE = """
#version 330
uniform sampler2D picture; uniform bool textured; uniform vec3 eye; uniform float cutoff;
in vec3 world; in vec2 v_uv; in vec4 v_color;
out float result;
void main() {
    float alpha = textured ? v_color.a * texture(picture, v_uv).a : v_color.a;
    if (alpha < (cutoff < 0.0 ? 0.5 : cutoff)) discard;
    result = distance(world, eye);
}
"""
DISTANCE_UNIT = 1e-4  # of the distances that are kept as int16


@dataclass(frozen=True)
class Part:
    """Triangles of one look.

    Attributes:
        first, count: Which rows of the mesh's corners.
        texture: [H, W, 4] uint8 of sRGB colour and alpha, or None.
        cutoff: Alpha from which a point is opaque, below which it isn't there; 0 makes all opaque, -1 blends.
    """

    first: int
    count: int
    texture: np.ndarray | None = None
    cutoff: float = 0.5


@dataclass(frozen=True)
class TexturedMesh:
    """Triangles ready to draw.

    Attributes:
        corners: [3F, 9] float32: position xyz (y up), uv (v up from the texture's last row), colour rgba 0 to 1 in
            linear light, by which the texture is multiplied.
        parts: Together all of the corners, opaque ones first.
        light: Where it is, fixed to the object; None is LIGHT.
        shade: See SHADE.
    """

    corners: np.ndarray
    parts: list[Part]
    light: tuple[float, float, float] | None = None
    shade: tuple[float, float] = SHADE


def read_index(path: str | Path) -> list[dict]:
    """The objects of an objects.zip: id, split, source, licence, caption and more."""
    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.read("index.json"))


def join_objects(paths: Sequence[str | Path], output: str | Path) -> int:
    """Write all objects of several objects.zip into one, the first archive's first; returns how many there are."""
    index, names = [], set()
    with zipfile.ZipFile(output, "w") as joined:
        for path in paths:
            with zipfile.ZipFile(path) as archive:
                for entry in read_index(path):
                    if entry["id"] in names:
                        raise LGMError(f"{path} has an object {entry['id']} that an archive before it has too.")
                    names.add(entry["id"])
                    joined.writestr(f"{entry['id']}.npz", archive.read(f"{entry['id']}.npz"))
                    index.append(entry)
        joined.writestr("index.json", json.dumps(index))
    return len(index)


def read_mesh(archive: zipfile.ZipFile, object_id: str, radius: float = OBJECT_RADIUS) -> TexturedMesh:
    """One object of an objects.zip, scaled so that a bounding-box diagonal of 1.4 becomes 2 · radius."""
    with np.load(io.BytesIO(archive.read(f"{object_id}.npz"))) as data:
        layers = data["material_texture"][data["face_material"]]
        order = np.argsort(layers, kind="stable")
        faces = data["faces"].astype(np.int64)[order]
        positions = data["vertices"].astype(np.float32)[faces] * (radius / 0.7)
        uv = data["uv"].astype(np.float32)[faces]
        colors = to_linear(data["material_color"].astype(np.float32)[data["face_material"][order]] / 255)
        colors[:, 3] = 1
        pictures = {
            layer: np.asarray(Image.open(io.BytesIO(data[f"texture_{layer}"].tobytes())).convert("RGBA"))
            for layer in np.unique(layers).tolist()
            if layer >= 0
        }
    corners = np.concatenate([positions, uv, np.repeat(colors[:, None], 3, axis=1)], axis=2)
    parts, first = [], 0
    for layer, count in zip(*np.unique(layers, return_counts=True), strict=True):
        parts.append(Part(3 * first, 3 * int(count), pictures.get(int(layer))))
        first += int(count)
    return TexturedMesh(corners.reshape(-1, 9).astype(np.float32), parts)


def read_object(path: str | Path, object_id: str) -> TexturedMesh:
    """`read_mesh` from the objects.zip at `path`."""
    with zipfile.ZipFile(path) as archive:
        return read_mesh(archive, object_id)


def centred(positions: np.ndarray, radius: float = OBJECT_RADIUS) -> np.ndarray:
    """Positions [N, 3] moved and scaled so that their bounding box has its middle at 0 and a diagonal of 2 · radius."""
    low, high = positions.min(0), positions.max(0)
    return (positions - (low + high) / 2) * (2 * radius / np.linalg.norm(high - low))


def to_linear(colors: np.ndarray) -> np.ndarray:
    """sRGB values [..., 3 or more] in 0 to 1 in linear light; what comes after the third stays."""
    colors = np.array(colors, np.float32)
    rgb = colors[..., :3]
    colors[..., :3] = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return colors


class ViewRenderer:
    """Draws meshes on a transparent background with moderngl (EGL: a GPU's, or Mesa's on a CPU).

    Args:
        size: Width and height of the views in pixels.
        samples: Of each pixel, if there are as many.
        distance_size: Width and height of the pictures of distances; 0 draws none.
    """

    def __init__(self, size: int = 256, samples: int = 8, distance_size: int = 128):
        import moderngl

        self.size, self.distance_size = size, distance_size
        # Many processes on one GPU wait for each other more than they draw.
        number = (current_process()._identity or (0,))[0] % int(os.environ.get(EGL_DEVICES, 1))
        self.gl = moderngl.create_standalone_context(backend="egl", device_index=number)
        self.gl.enable(moderngl.DEPTH_TEST)
        samples = min(samples, self.gl.max_samples)
        self.target = self.gl.framebuffer(
            [self.gl.renderbuffer((size, size), 4, samples=samples)],
            self.gl.depth_renderbuffer((size, size), samples=samples),
        )
        self.resolved = self.gl.framebuffer([self.gl.renderbuffer((size, size), 4)])
        self.program = self.gl.program(vertex_shader=_VERTEX, fragment_shader=_FRAGMENT)
        for mode in _COVERAGE:
            self.gl.enable_direct(mode)
        self.gl.blend_func = moderngl.ONE, moderngl.ONE_MINUS_SRC_ALPHA
        if distance_size:
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
        vertices = self.gl.buffer(np.ascontiguousarray(mesh.corners).tobytes())
        textures = [None if part.texture is None else self._texture(part.texture) for part in mesh.parts]
        views = np.empty((len(poses), self.size, self.size, 4), np.uint8)
        distances = np.empty((len(poses), self.distance_size, self.distance_size), np.int16)
        array = self.gl.vertex_array(self.program, [(vertices, "3f 2f 4f", "position", "uv", "color")])
        light = np.array(LIGHT if mesh.light is None else mesh.light)
        self.program["sun"].value = tuple((light / np.linalg.norm(light)).tolist())
        self.program["shade"].value = mesh.shade
        for i, pose in enumerate(poses):
            self.target.use()
            self._draw_parts(mesh, textures, array, pose)
            self.gl.copy_framebuffer(self.resolved, self.target)
            flat = np.frombuffer(self.resolved.read(components=4, alignment=1), np.uint8)
            views[i] = flat.reshape(views.shape[1:])[::-1]
        array.release()
        if self.distance_size:
            array = self.gl.vertex_array(self.distance_program, [(vertices, "3f 2f 4f", "position", "uv", "color")])
            for i, pose in enumerate(poses):
                self.distance_target.use()
                self._draw_parts(mesh, textures, array, pose)
                flat = np.frombuffer(self.distance_target.read(components=1, alignment=1, dtype="f4"), np.float32)
                distances[i] = np.round(flat.reshape(distances.shape[1:])[::-1] / DISTANCE_UNIT)
            array.release()
        for resource in (vertices, *textures):
            if resource is not None:
                resource.release()
        return views, distances

    def _draw_parts(self, mesh: TexturedMesh, textures: list, array, pose: np.ndarray) -> None:
        """One picture, into the framebuffer in use."""
        program = array.program
        self.gl.clear(0, 0, 0, 0)
        matrix = _projection(0.1, FAR + 1) @ np.linalg.inv(pose.astype(np.float64))
        program["view_projection"].write(np.ascontiguousarray(matrix.T, np.float32).tobytes())
        program["eye"].value = tuple(float(x) for x in pose[:3, 3])
        for part, texture in zip(mesh.parts, textures, strict=True):
            program["cutoff"].value = part.cutoff
            program["textured"].value = texture is not None
            if texture is not None:
                texture.use(0)
            if part.cutoff < 0 and program is self.program:
                self._blend(mesh, part, pose)
            else:
                array.render(vertices=part.count, first=part.first)

    def _texture(self, pixels: np.ndarray):
        import moderngl

        height, width = pixels.shape[:2]
        texture = self.gl.texture((width, height), 4, np.ascontiguousarray(pixels[::-1]).tobytes())
        texture.build_mipmaps()
        texture.filter = (moderngl.LINEAR_MIPMAP_LINEAR, moderngl.LINEAR)
        if "llvmpipe" not in self.gl.info["GL_RENDERER"]:  # Mesa on a CPU may take two seconds a view for it
            texture.anisotropy = 8.0
        return texture

    def _blend(self, mesh: TexturedMesh, part: Part, pose: np.ndarray) -> None:
        """Draws half-transparent triangles, the farthest first; they hide nothing behind them."""
        triangles = mesh.corners[part.first : part.first + part.count].reshape(-1, 3, 9)
        order = np.argsort(triangles[..., :3].mean(1) @ pose[:3, 2])
        vertices = self.gl.buffer(np.ascontiguousarray(triangles[order]).tobytes())
        array = self.gl.vertex_array(self.program, [(vertices, "3f 2f 4f", "position", "uv", "color")])
        self.gl.enable(self.gl.BLEND)
        for mode in _COVERAGE:
            self.gl.disable_direct(mode)
        self.target.depth_mask = False
        array.render()
        self.target.depth_mask = True
        self.gl.disable(self.gl.BLEND)
        for mode in _COVERAGE:
            self.gl.enable_direct(mode)
        array.release()
        vertices.release()


def _projection(near: float, far: float) -> np.ndarray:
    cotangent = 1 / np.tan(0.5 * np.radians(FOV_Y))
    result = np.zeros((4, 4))
    result[0, 0] = result[1, 1] = cotangent
    result[2, 2], result[2, 3] = (far + near) / (near - far), 2 * far * near / (near - far)
    result[3, 2] = -1
    return result


Cameras = Callable[[str], tuple[np.ndarray, np.ndarray]]
Reader = Callable[[str], TexturedMesh]  # an object's id to its mesh


Closer = Callable[["ViewRenderer", TexturedMesh, np.ndarray, np.ndarray], np.ndarray | None]  # truth.close_up


def _draw_part(
    ids: list[str], offset: int, read: Reader, size: int, output: str, cameras: Cameras, image: Closer | None
) -> list[str]:
    views = np.lib.format.open_memmap(output, mode="r+")
    distances = np.lib.format.open_memmap(distance_path(output), mode="r+")
    photos = np.lib.format.open_memmap(photos_path(output), mode="r+") if image else None
    renderer = ViewRenderer(size, distance_size=distances.shape[-1])
    empty = []
    for i, object_id in enumerate(ids, offset):
        mesh, poses = read(object_id), cameras(object_id)[0]
        drawn, distances[i] = renderer.draw(mesh, poses)
        views[i] = drawn
        if image:
            closer = image(renderer, mesh, drawn[0], poses[0])
            photos[i] = drawn[0] if closer is None else closer
        if drawn[..., 3].any(axis=(1, 2)).mean() < 0.9:
            empty.append(object_id)
    return empty


def in_parts(part: Callable[..., list[str]], ids: list[str], processes: int, *words) -> list[str]:
    """What `part(some ids, the first one's number, *words)` returns of all ids, which go to several processes."""
    step = max(1, -(-len(ids) // (processes * 4)))
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        parts = [pool.submit(part, ids[i : i + step], i, *words) for i in range(0, len(ids), step)]
        return [object_id for each in parts for object_id in each.result()]


def photos_path(path: str | Path) -> Path:
    """Where the images of the objects whose views lie at `path` are."""
    return Path(path).with_suffix(".photos.npy")


def distance_path(path: str | Path) -> Path:
    """Where the distances of the views at `path` lie."""
    return Path(path).with_suffix(".distances.npy")


def draw_objects(
    read: Reader,
    ids: list[str],
    size: int,
    output: str | Path,
    processes: int = 4,
    cameras: Cameras = view_poses,
    image: Closer | None = None,
) -> list[str]:
    """Draw objects into one .npy file [objects, views, size, size, 4] uint8, premultiplied, and their distances.

    The distances (see ViewRenderer.draw) are half as wide, as mini's Gaussians are, and lie in `distance_path(output)`.

    Args:
        read: Reads or makes an object; goes to other processes, so a function of a module or a `partial` of one.
        ids: The objects.
        size: Width and height of the views in pixels.
        output: The .npy file.
        processes: How many draw at once.
        cameras: An object's id to its poses and angles: `view_poses` or `evaluation_poses`.
        image: Draws an image of the first view's side too, into `photos_path(output)` [objects, size, size, 4] uint8;
            where it draws none the first view is the image.

    Returns:
        The ids of objects of which little or nothing can be seen.
    """
    shape = (len(ids), len(cameras(ids[0])[0]), size, size, 4)
    np.lib.format.open_memmap(output, mode="w+", dtype=np.uint8, shape=shape).flush()
    halves = (*shape[:2], size // 2, size // 2)
    np.lib.format.open_memmap(distance_path(output), mode="w+", dtype=np.int16, shape=halves).flush()
    if image:
        np.lib.format.open_memmap(photos_path(output), mode="w+", dtype=np.uint8, shape=(len(ids), *shape[2:])).flush()
    return in_parts(_draw_part, ids, processes, read, size, str(output), cameras, image)
