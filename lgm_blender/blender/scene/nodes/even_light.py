"""Materials under a light that is the same from every camera, as training views are drawn: "LGM Even Light"."""

from __future__ import annotations

import bpy

from ....core.cameras import LIGHT, SHADE, points_to_blender
from ... import compat
from .build import Builder

NAME = "LGM Even Light"
PLAIN = (0.8, 0.8, 0.8, 1.0)  # what has no material; Blender's own grey
_KEPT = {"MIX_SHADER", "ADD_SHADER", "BSDF_TRANSPARENT", "HOLDOUT", "GROUP", "GROUP_INPUT", "REROUTE", "FRAME"}
_INPUTS = {
    "Color": ("Base Color", "Color"),
    "Emission": ("Emission Color", "Emissive Color"),
    "Strength": ("Emission Strength",),
    "Alpha": ("Alpha",),
}


class EvenLight:
    """Copies of materials that show their colours, whatever light they were made for.

    Every shader becomes one that emits its colour, as a display value: times `core.cameras.SHADE` by how much its face
    looks at a light that is fixed to the world. Mixes and transparency stay. Rendered without a view transform, that is
    what training/data/objects.py draws.

    Attributes:
        made: What was added to the file, to be removed by the caller.
    """

    def __init__(self):
        self.made: list[bpy.types.ID] = []
        self._materials: dict[tuple, bpy.types.Material] = {}
        self._groups: dict[bpy.types.NodeTree, bpy.types.NodeTree] = {}
        self._shader: bpy.types.NodeTree | None = None

    def material(self, source: bpy.types.Material | None, colors: str = "") -> bpy.types.Material:
        """The copy of a material; for None, one that shows the colour attribute named `colors`, or grey."""
        key = (source, "" if source else colors)
        if key not in self._materials:
            self._materials[key] = self._copy(source, colors)
        return self._materials[key]

    def _copy(self, source: bpy.types.Material | None, colors: str) -> bpy.types.Material:
        if source is not None and compat.uses_nodes(source):
            result = source.copy()
            self.made.append(result)
            self._convert(result.node_tree)
        else:
            result = bpy.data.materials.new(NAME)
            self.made.append(result)
            tree = compat.node_tree(result)
            tree.nodes.clear()
            b = Builder(tree)
            color = PLAIN if source is None else tuple(source.diffuse_color)
            if source is None and colors:
                color = b.node("ShaderNodeVertexColor", layer_name=colors).outputs["Color"]
            shader = b.node("ShaderNodeGroup", {}, node_tree=self.shader)
            b.plug(color, shader.inputs["Color"])
            b.node("ShaderNodeOutputMaterial", {"Surface": shader.outputs["Shader"]})
        if hasattr(result, "cycles"):  # an add-on that can be turned off
            result.cycles.emission_sampling = "NONE"  # it lights nothing, so Cycles need not look for it
        return result

    def _convert(self, tree: bpy.types.NodeTree) -> None:
        """Replaces all shaders of a tree."""
        for node in list(tree.nodes):
            if node.type == "GROUP" and node.node_tree:
                node.node_tree = self._group(node.node_tree)
            elif node.type == "OUTPUT_MATERIAL":
                for name in ("Volume", "Displacement"):
                    for link in list(node.inputs[name].links):
                        tree.links.remove(link)
            elif node.type not in _KEPT and any(socket.type == "SHADER" for socket in node.outputs):
                self._replace(tree, node)

    def _group(self, group: bpy.types.NodeTree) -> bpy.types.NodeTree:
        if group not in self._groups:
            copy = self._groups[group] = group.copy()
            self.made.append(copy)
            self._convert(copy)
        return self._groups[group]

    def _replace(self, tree: bpy.types.NodeTree, node: bpy.types.Node) -> None:
        shader = tree.nodes.new("ShaderNodeGroup")
        shader.node_tree = self.shader
        names = dict(_INPUTS)
        if node.type == "EMISSION":
            names = {"Emission": ("Color",), "Strength": ("Strength",)}
            shader.inputs["Color"].default_value = (0, 0, 0, 1)
        for target, sources in names.items():
            socket = next((node.inputs[name] for name in sources if name in node.inputs), None)
            if socket is None:
                continue
            if socket.links:
                tree.links.new(socket.links[0].from_socket, shader.inputs[target])
            else:
                shader.inputs[target].default_value = socket.default_value
        for output in node.outputs:
            for link in list(output.links):
                tree.links.new(shader.outputs["Shader"], link.to_socket)
        tree.nodes.remove(node)

    @property
    def shader(self) -> bpy.types.NodeTree:
        """The group that stands for all shaders."""
        if self._shader is None:
            self._shader = bpy.data.node_groups.new(NAME, "ShaderNodeTree")
            self.made.append(self._shader)
            _build(self._shader)
        return self._shader


def _build(tree: bpy.types.NodeTree) -> None:
    for name, kind, default in (
        ("Color", "NodeSocketColor", PLAIN),
        ("Emission", "NodeSocketColor", (0, 0, 0, 1)),
        ("Strength", "NodeSocketFloat", 0.0),
        ("Alpha", "NodeSocketFloat", 1.0),
    ):
        tree.interface.new_socket(name, in_out="INPUT", socket_type=kind).default_value = default
    tree.interface.new_socket("Shader", in_out="OUTPUT", socket_type="NodeSocketShader")
    b = Builder(tree)
    given = b.node("NodeGroupInput").outputs
    strength = b.math("MINIMUM", given["Strength"], 1.0)  # beyond white there is nothing
    color = b.vector("ADD", given["Color"], b.vector("SCALE", given["Emission"], strength))

    # Faces are not wound consistently, so the normal is turned to the camera.
    geometry = b.node("ShaderNodeNewGeometry").outputs
    normal, incoming = geometry["True Normal"], geometry["Incoming"]
    facing = b.math("SIGN", b.vector("DOT_PRODUCT", normal, incoming))
    sun = points_to_blender(LIGHT) / sum(x * x for x in LIGHT) ** 0.5
    light = b.math("MULTIPLY", b.vector("DOT_PRODUCT", normal, b.xyz(*sun.tolist())), facing)
    light = b.math("MULTIPLY_ADD", light, SHADE[1], SHADE[0])

    # Display values: what is rendered is blended and smoothed as it is seen.
    separated = b.node("ShaderNodeSeparateXYZ", {"Vector": color}).outputs
    channels = []
    for axis in "XYZ":
        linear = b.math("ADD", separated[axis], 0.0, clamp=True)
        power = b.math("MULTIPLY_ADD", b.math("POWER", linear, 1 / 2.4), 1.055, -0.055)
        small = b.math("LESS_THAN", linear, 0.0031308)
        straight = b.math("MULTIPLY", linear, 12.92)
        value = b.math("MULTIPLY_ADD", small, b.math("SUBTRACT", straight, power), power)
        channels.append(b.math("MULTIPLY", value, light))
    emission = b.node("ShaderNodeEmission", {"Color": b.xyz(*channels)}).outputs["Emission"]
    transparent = b.node("ShaderNodeBsdfTransparent").outputs["BSDF"]
    mix = b.node("ShaderNodeMixShader", {"Fac": given["Alpha"], "Shader": transparent, "Shader_001": emission})
    b.node("NodeGroupOutput", {"Shader": mix.outputs["Shader"]})
