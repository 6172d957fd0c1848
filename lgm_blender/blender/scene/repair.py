"""Gaussians turned and scaled after Blender's own tools, which move their centres only.

Apply, Join, an applied Mirror modifier and whatever is done in Edit Mode leave `scale`, `rotation` and the harmonics of
splats as they were. `splat:rest` (splat_data.py) still says where each point was when they were right, and so which map
has moved it. All points of a part under one map is what Apply and Join do; several groups are what Edit Mode leaves.
Undo needs nothing of its own: the same follows again from what it brings back.
"""

from __future__ import annotations

from typing import NamedTuple

import bpy
import numpy as np

from ...core.affine import transformed
from ...core.affine_fit import Group, is_translation, moved_as_one, moved_in_groups
from . import splat_data
from .splat_data import PART, REST, get, put

FRAME = "lgm_frame"  # splats.py's
UNMENDED = "lgm_unmended"  # custom property of a data-block: how many of its Gaussians moved by no map last


class Mended(NamedTuple):
    """How many Gaussians had moved, were turned or scaled after it, and moved in a way that says nothing about that."""

    moved: int = 0
    changed: int = 0
    unknown: int = 0


def has_rest(data: bpy.types.ID) -> bool:
    """Whether a data-block of Gaussians says where its points were when they were right."""
    return all(name in data.attributes and attributes_fit(data, name) for name in (REST, PART))


def attributes_fit(data: bpy.types.ID, name: str) -> bool:
    """Whether an attribute has a value for each point."""
    return data.attributes[name].domain == "POINT" and len(data.attributes[name].data) == splat_data.point_count(data)


def adopt(data: bpy.types.ID) -> None:
    """Takes Gaussians for right as they are: those that Blender imported, that an older version made, or that moved."""
    count = splat_data.point_count(data)
    put(data, REST, "FLOAT_VECTOR", get(data, "position"))
    part = get(data, PART) if PART in data.attributes else np.zeros(count, np.int32)
    if not part.all():
        put(data, PART, "INT", np.where(part == 0, splat_data.new_part(), part))
    data.update_tag()


def mend(data: bpy.types.ID) -> Mended:
    """Turns and scales the Gaussians of a data-block as their centres were turned and scaled since they were right.

    Those that moved by no map that could be found keep their sizes; the data-block's property `UNMENDED` says how many.
    Where all were moved, or others joined, the objects lose what `add_splats` noted about their place (`splats.FRAME`):
    from then on their Gaussians are read as they are.

    Args:
        data: A mesh or point cloud of Gaussians of this file, that is in no Edit Mode.
    """
    if not has_rest(data):
        adopt(data)
        return Mended()
    position, rest = get(data, "position"), get(data, REST)
    if np.array_equal(position, rest, equal_nan=True):
        _forget_frame(data)
        return Mended()
    part = get(data, PART)
    moved = (position != rest).any(axis=1) & np.isfinite(position).all(axis=1) & np.isfinite(rest).all(axis=1)
    moved &= part != 0  # else a point has no past: made in Edit Mode, or joined from what was never seen before
    groups, unknown, everything = _groups(position, rest, part, moved)
    changed = _transform(data, [group for group in groups if not is_translation(group.matrix)])
    adopt(data)
    if unknown:
        data[UNMENDED] = unknown
    elif UNMENDED in data:
        del data[UNMENDED]
    _forget_frame(data, everything)
    return Mended(int(moved.sum()), changed, unknown)


def _groups(
    position: np.ndarray, rest: np.ndarray, part: np.ndarray, moved: np.ndarray
) -> tuple[list[Group], int, bool]:
    """What moved as one; how many points are in no group; whether a part moved as a whole."""
    groups, unknown, everything = [], 0, False
    for number in np.unique(part[moved]):
        here = np.flatnonzero(part == number)
        these = here[moved[here]]
        matrix = moved_as_one(rest[here], position[here])
        if matrix is not None:  # Apply, Join: also of those that a turn leaves where they are
            groups.append(Group(here, matrix))
            everything = True
            continue
        matrix = moved_as_one(rest[these], position[these])
        if matrix is not None:
            groups.append(Group(these, matrix))
            continue
        found, left = moved_in_groups(rest[these], position[these])
        groups += [Group(these[group.indices], group.matrix) for group in found]
        unknown += len(left)
    return groups, unknown, everything


def _transform(data: bpy.types.ID, groups: list[Group]) -> int:
    """Turns and scales Gaussians in place, but for their positions; how many those are."""
    if not groups:
        return 0
    gaussians = splat_data.read_data(data)
    arrays = {"scales": gaussians.scales, "rotations": gaussians.rotations, "harmonics": gaussians.harmonics}
    for indices, matrix in groups:
        whole = len(indices) == len(gaussians)
        after = transformed(gaussians if whole else gaussians.select(indices), matrix)
        for name, array in arrays.items():
            array[indices] = getattr(after, name)
    put(data, "scale", "FLOAT_VECTOR", arrays["scales"])
    put(data, "rotation", "QUATERNION", arrays["rotations"])
    for i in range(gaussians.harmonics.shape[1]):
        put(data, splat_data.HARMONIC.format(i), "FLOAT_VECTOR", arrays["harmonics"][:, i])
    return sum(len(group.indices) for group in groups)


def _forget_frame(data: bpy.types.ID, everything: bool = False) -> None:
    """Takes from a data-block's objects what says how its Gaussians were placed, if that is no longer so."""
    framed = [user for user in bpy.data.objects if user.data == data and FRAME in user]
    if framed and (everything or _has_parts(data)):
        for user in framed:
            del user[FRAME]


def _has_parts(data: bpy.types.ID) -> bool:
    part = get(data, PART)
    return bool(len(part) and part.min() != part.max())
