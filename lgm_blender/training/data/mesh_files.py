"""GLB, glTF, OBJ and PLY files to meshes ready to render, read by trimesh.

What is rendered is the base colour (texture, factor and vertex colours) plus what the material emits. Factors are taken
in linear light and OBJ's too, as Blender does; vertex colours of PLY and OBJ are sRGB.
"""

from __future__ import annotations

import io
import json
import logging
import struct
from pathlib import Path

import numpy as np
from PIL import Image

from ...core.cameras import OBJECT_RADIUS
from ...core.color import linear_to_srgb
from ...core.errors import LGMError
from .objects import ObjectMesh, Submesh, centred, to_linear

SUFFIXES = (".glb", ".gltf", ".obj", ".ply")
MAX_TEXTURE = 2048  # pixels a side; more than views of a few hundred pixels can show
PLAIN = 0.8  # the grey, in linear light, of what has no material, as in Blender
# What is read, or changes nothing of the base colour.
_KNOWN = ("KHR_materials_", "KHR_texture_transform", "KHR_mesh_quantization", "KHR_lights_punctual", "EXT_texture_webp")


def read_mesh_file(path: str | Path, radius: float = OBJECT_RADIUS) -> ObjectMesh:
    """A file as one mesh, its bounding box centred and its diagonal 2 · radius.

    Raises:
        LGMError: If it can't be read, holds no triangles, or uses what would be rendered wrong.
    """
    import trimesh

    path = Path(path)
    # It logs what it can't make sense of; what matters of that is told below.
    logging.getLogger("trimesh").setLevel(logging.CRITICAL)
    try:
        if path.suffix.lower() in (".glb", ".gltf"):
            file, materials = _open_gltf(path)
            resolver = trimesh.resolvers.FilePathResolver(path)
            scene = trimesh.load_scene(file, file_type=path.suffix[1:].lower(), resolver=resolver, process=False)
        else:
            scene, materials = trimesh.load_scene(path, process=False), None
        pieces = [_piece(scene, name, materials) for name in scene.graph.nodes_geometry]
    except LGMError:
        raise
    except Exception as error:  # readers raise whatever they like on broken files
        raise LGMError(f"{path} could not be read ({type(error).__name__}: {error}). Export it again.") from error
    pieces = [piece for piece in pieces if piece]
    if not pieces:
        raise LGMError(f"{path} holds no triangles. Export it with its faces.")
    pieces.sort(key=lambda piece: piece[1].cutoff < 0)
    corners = np.concatenate([piece[0] for piece in pieces])
    if not np.isfinite(corners).all():
        raise LGMError(f"{path} has coordinates that are not numbers. Export it again.")
    if not np.linalg.norm(np.ptp(corners[:, :3], axis=0)) > 0:
        raise LGMError(f"{path} has no extent: all of it is in one point. Export it again.")
    corners[:, :3] = centred(corners[:, :3], radius)
    parts, first = [], 0
    for rows, look in pieces:
        parts.append(Submesh(first, len(rows), look.texture, look.cutoff))
        first += len(rows)
    return ObjectMesh(corners.astype(np.float32), parts)


def _open_gltf(path: Path) -> tuple[io.BytesIO, list[dict]]:
    """A glTF file whose materials are named by their number, and those materials as the file has them.

    trimesh rounds factors to 8 bits of linear light, drops texture transforms, and passes over extensions it doesn't
    know without a word, which would put points or textures in wrong places.
    """
    try:
        data = path.read_bytes()
        binary = data[:4] == b"glTF"
        length = struct.unpack_from("<I", data, 12)[0] if binary else 0
        header = json.loads(data[20 : 20 + length] if binary else data)
        strange = [n for n in header.get("extensionsUsed", ()) if not n.startswith(_KNOWN)]
        materials = header.setdefault("materials", [])
        materials += [{"pbrMetallicRoughness": {"baseColorFactor": [PLAIN, PLAIN, PLAIN, 1]}}, {}]
        for i, material in enumerate(materials):
            material["name"] = str(i)
        for mesh in header.get("meshes", ()):
            for primitive in mesh["primitives"]:
                plain = "COLOR_0" not in primitive["attributes"]
                primitive.setdefault("material", len(materials) - 1 - plain)
        infos = [material.get("pbrMetallicRoughness", {}).get("baseColorTexture", {}) for material in materials]
    except OSError as error:
        raise LGMError(f"{path} could not be read ({error.strerror or error}). Check its permissions.") from error
    except (ValueError, AttributeError, KeyError, TypeError, struct.error) as error:
        raise LGMError(f"{path} is not a glTF file, or damaged ({error}). Export it again.") from error
    if any(info.get("texCoord", 0) for info in infos):
        strange.append("a second set of texture coordinates")
    if strange:
        raise LGMError(
            f"{path} uses {', '.join(strange)}, which is not supported here. Make its views with Blender "
            "(lgm_blender/blender/training_views.py)."
        )
    text = json.dumps(header).encode()
    if binary:
        text += b" " * (-len(text) % 4)
        rest = data[20 + length :]
        head = struct.pack("<4sIIII", b"glTF", 2, 20 + len(text) + len(rest), len(text), 0x4E4F534A)
        text = head + text + rest
    return io.BytesIO(text), materials


def _piece(scene, name: str, materials: list[dict] | None) -> tuple[np.ndarray, Submesh] | None:
    """The corners [3F, 9] of one of a scene's geometries, and their look; None if it has no triangles.

    Args:
        materials: glTF's, see `_open_gltf`; None for other formats.
    """
    matrix, geometry_name = scene.graph[name]
    mesh = scene.geometry[geometry_name]
    if len(getattr(mesh, "faces", ())) == 0:
        return None
    corners = np.zeros((len(mesh.faces), 3, 9))
    corners[..., :3] = (mesh.vertices @ matrix[:3, :3].T + matrix[:3, 3])[mesh.faces]
    texture, factor, cutoff = None, np.array([PLAIN, PLAIN, PLAIN, 1.0]), 0.0
    visual = mesh.visual
    if visual.kind == "texture":
        uv, colors = visual.uv, visual.vertex_attributes.get("color")
        if materials is not None:
            told = materials[int(visual.material.name)]
            texture, factor, cutoff = _gltf_look(visual.material, told)
            uv = _transformed(uv, told)
        elif visual.material is not None:
            texture, factor, cutoff = _obj_look(visual.material)
        if texture is not None and uv is not None and len(uv) == len(mesh.vertices):
            corners[..., 3:5] = uv[mesh.faces]
        elif texture is not None and texture.shape[:2] != (1, 1):
            texture = None
        if colors is not None and len(colors) == len(mesh.vertices):
            factor = factor * (_unit(colors) if materials is not None else to_linear(_unit(colors)))[mesh.faces]
    elif visual.kind == "vertex":
        factor = to_linear(_unit(visual.vertex_colors))[mesh.faces]
    elif visual.kind == "face":
        factor = to_linear(_unit(visual.face_colors))[:, None]
    corners[..., 5:] = factor
    if cutoff == 0:  # opaque whatever its alpha is
        corners[..., 8] = 1
    return corners.reshape(-1, 9), Submesh(0, 3 * len(mesh.faces), texture, cutoff)


def _gltf_look(material, told: dict) -> tuple[np.ndarray | None, np.ndarray, float]:
    """A glTF material's texture, the linear factor [4] on it, and its parts' cutoff."""
    texture = None if material.baseColorTexture is None else _pixels(material.baseColorTexture)
    factor = np.array(told.get("pbrMetallicRoughness", {}).get("baseColorFactor", (1, 1, 1, 1)), np.float64)
    glow = np.array(told.get("emissiveFactor", (0, 0, 0)), np.float64)
    if glow.any():
        # Texture and factor become one, so that what is emitted can be added.
        base = np.ones((1, 1, 4)) if texture is None else to_linear(texture / np.float32(255))
        picture = material.emissiveTexture
        light = np.ones((1, 1, 4)) if picture is None else to_linear(_pixels(picture) / np.float32(255))
        size = max(light.shape[:2], base.shape[:2])
        base, light = _resized(base, size), _resized(light, size)
        light[..., :3] *= glow
        light[..., 3] = 0
        texture, factor = (_to_srgb((base * factor + light).clip(0, 1)) * 255 + 0.5).astype(np.uint8), np.ones(4)
    cutoffs = {"OPAQUE": 0.0, "MASK": float(told.get("alphaCutoff", 0.5)), "BLEND": -1.0}
    return texture, factor, cutoffs.get(told.get("alphaMode", "OPAQUE"), 0.0)


def _obj_look(material) -> tuple[np.ndarray | None, np.ndarray, float]:
    """An OBJ or PLY material's texture, the linear factor [4] on it, and its parts' cutoff."""
    picture, told = getattr(material, "image", None), getattr(material, "kwargs", {})
    if picture is not None:  # which replaces Kd in Blender
        return _pixels(picture), np.array([1.0, 1.0, 1.0, 1.0]), 0.0
    opacity = float(told["d"][0]) if "d" in told else 1.0
    return (
        None,
        np.array([*np.broadcast_to(told.get("kd", PLAIN), 3), opacity], np.float64),
        -1.0 if opacity < 1 else 0.0,
    )


def _transformed(uv: np.ndarray | None, told: dict) -> np.ndarray | None:
    """Texture coordinates (v up) under a glTF texture's KHR_texture_transform, which is meant for v down."""
    info = told.get("pbrMetallicRoughness", {}).get("baseColorTexture", {})
    transform = info.get("extensions", {}).get("KHR_texture_transform")
    if uv is None or transform is None:
        return uv
    u, v = (np.column_stack([uv[:, 0], 1 - uv[:, 1]]) * transform.get("scale", (1, 1))).T
    angle = transform.get("rotation", 0.0)
    cosine, sine = np.cos(angle), np.sin(angle)
    x, y = transform.get("offset", (0, 0))
    return np.column_stack([cosine * u + sine * v + x, 1 - (-sine * u + cosine * v + y)])


def _unit(colors: np.ndarray) -> np.ndarray:
    """Colours [N, 3 or 4] of any type as [N, 4] floats in 0 to 1."""
    colors = np.asarray(colors)
    scale = np.iinfo(colors.dtype).max if colors.dtype.kind in "ui" else 1
    result = np.ones((len(colors), 4))
    result[:, : colors.shape[1]] = colors / scale
    return result


def _pixels(picture: Image.Image) -> np.ndarray:
    """[H, W, 4] uint8 of a texture, made smaller if it is very large."""
    picture = picture.convert("RGBA")
    if max(picture.size) > MAX_TEXTURE:
        size = [max(1, side * MAX_TEXTURE // max(picture.size)) for side in picture.size]
        channels = [channel.resize(size, Image.Resampling.BOX) for channel in picture.split()]
        picture = Image.merge("RGBA", channels)  # not weighted by alpha: an opaque material shows all of it
    return np.asarray(picture)


def _resized(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """[H, W, 4] floats at another size [height, width]."""
    if values.shape[:2] == size:
        return values
    channels = [Image.fromarray(values[..., i].astype(np.float32)) for i in range(4)]
    return np.stack([np.asarray(c.resize(size[::-1], Image.Resampling.BILINEAR)) for c in channels], -1)


def _to_srgb(colors: np.ndarray) -> np.ndarray:
    return np.concatenate([linear_to_srgb(colors[..., :3]), colors[..., 3:]], -1)
