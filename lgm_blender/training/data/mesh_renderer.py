"""Meshes to pictures by moderngl, without a screen."""

from __future__ import annotations

import os
from multiprocessing import current_process

import numpy as np

from ...core.cameras import FAR, FOV_Y
from .objects import ObjectMesh, Submesh

EGL_DEVICES = "LGM_BLENDER_EGL_DEVICES"  # how many GPUs render: processes take them by turns

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
uniform float cutoff;  // alpha below which nothing is rendered, and from which all is; negative: alpha blends
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
VISIBLE = 0.9  # share of an object's pictures in which something must be seen
AT_ONCE = 20 * 256**2  # pixels: reading one picture after the other, processes wait for the GPU's turns between them


class ViewRenderer:
    """Renders meshes on a transparent background with moderngl (EGL: a GPU's, or Mesa's on a CPU).

    Args:
        size: Width and height of the views in pixels.
        samples: Of each pixel, if there are as many.
        distance_size: Width and height of the pictures of distances; 0 for none.
    """

    def __init__(self, size: int = 256, samples: int = 8, distance_size: int = 128):
        import moderngl

        self.size, self.distance_size = size, distance_size
        # Many processes on one GPU wait for each other more than they render.
        number = (current_process()._identity or (0,))[0] % int(os.environ.get(EGL_DEVICES, 1))
        self.gl = moderngl.create_standalone_context(backend="egl", device_index=number)
        self.gl.enable(moderngl.DEPTH_TEST)
        self.samples = min(samples, self.gl.max_samples)
        self.at_once = max(1, min(AT_ONCE // size**2, int(self.gl.info["GL_MAX_RENDERBUFFER_SIZE"]) // size))
        self._targets: dict[int, tuple] = {}
        self._mesh: ObjectMesh | None = None  # what the GPU holds
        self._vertices, self._textures = None, []
        self.program = self.gl.program(vertex_shader=_VERTEX, fragment_shader=_FRAGMENT)
        for mode in _COVERAGE:
            self.gl.enable_direct(mode)
        self.gl.blend_func = moderngl.ONE, moderngl.ONE_MINUS_SRC_ALPHA
        if distance_size:
            self.distance_program = self.gl.program(vertex_shader=_VERTEX, fragment_shader=_DISTANCE)

    def render(self, mesh: ObjectMesh, poses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Views of a mesh, and how far away its surface is.

        Args:
            mesh: The mesh.
            poses: [V, 4, 4], camera-to-world.

        Returns:
            Views [V, size, size, 4] uint8, colour premultiplied with alpha; and the distances from the eye to what the
            pixels' centres see [V, distance_size, distance_size] int16, in DISTANCE_UNIT, 0 where there is nothing.
        """
        with self.gl:  # another renderer's context may be the current one
            return self._render(mesh, poses)

    def _render(self, mesh: ObjectMesh, poses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self._upload(mesh)
        views = np.empty((len(poses), self.size, self.size, 4), np.uint8)
        distances = np.empty((len(poses), self.distance_size, self.distance_size), np.int16)
        self.program["sun"].value = tuple((np.array(mesh.light) / np.linalg.norm(mesh.light)).tolist())
        self.program["shade"].value = mesh.shade
        for first in range(0, len(poses), self.at_once):
            some = slice(first, first + self.at_once)
            target, resolved, distance_target = self._target(len(poses[some]))
            self._render_poses(mesh, self.program, target, self.size, poses[some])
            self.gl.copy_framebuffer(resolved, target)
            flat = np.frombuffer(resolved.read(components=4, alignment=1), np.uint8)
            views[some] = flat.reshape(views[some].shape)[:, ::-1]
            if self.distance_size:
                self._render_poses(mesh, self.distance_program, distance_target, self.distance_size, poses[some])
                flat = np.frombuffer(distance_target.read(components=1, alignment=1, dtype="f4"), np.float32)
                distances[some] = np.round(flat.reshape(distances[some].shape)[:, ::-1] / DISTANCE_UNIT)
        return views, distances

    def _upload(self, mesh: ObjectMesh) -> None:
        """Its triangles and textures to the GPU, where they stay until another mesh comes."""
        if self._mesh is mesh:
            return
        for resource in (self._vertices, *self._textures):
            if resource is not None:
                resource.release()
        self._mesh, self._vertices = mesh, self.gl.buffer(np.ascontiguousarray(mesh.corners).tobytes())
        self._textures = [None if part.texture is None else self._texture(part.texture) for part in mesh.parts]

    def _target(self, number: int) -> tuple:
        """Framebuffers for so many pictures one above the other: with samples, without, and of distances."""
        if number not in self._targets:

            def framebuffer(size: int, samples: int = 0, depth: bool = True, **kind):
                size = size, size * number
                buffers = [self.gl.renderbuffer(size, samples=samples, **kind)]
                depths = [self.gl.depth_renderbuffer(size, samples=samples)] if depth else []
                return self.gl.framebuffer(buffers, *depths)

            distances = framebuffer(self.distance_size, components=1, dtype="f4") if self.distance_size else None
            pictures = framebuffer(self.size, self.samples), framebuffer(self.size, depth=False)
            self._targets[number] = *pictures, distances
        return self._targets[number]

    def _render_poses(self, mesh: ObjectMesh, program, target, size: int, poses: np.ndarray) -> None:
        """Pictures one above the other, the first one lowest."""
        array = self.gl.vertex_array(program, [(self._vertices, "3f 2f 4f", "position", "uv", "color")])
        target.viewport = 0, 0, target.width, target.height
        target.use()
        self.gl.clear(0, 0, 0, 0)
        for i, pose in enumerate(poses):
            target.viewport = 0, i * size, size, size
            self._render_parts(mesh, target, array, pose)
        array.release()

    def _render_parts(self, mesh: ObjectMesh, target, array, pose: np.ndarray) -> None:
        """One picture, into the framebuffer in use."""
        program = array.program
        matrix = projection(0.1, FAR + 1) @ np.linalg.inv(pose.astype(np.float64))
        program["view_projection"].write(np.ascontiguousarray(matrix.T, np.float32).tobytes())
        program["eye"].value = tuple(float(x) for x in pose[:3, 3])
        for part, texture in zip(mesh.parts, self._textures, strict=True):
            program["cutoff"].value = part.cutoff
            program["textured"].value = texture is not None
            if texture is not None:
                texture.use(0)
            if part.cutoff < 0 and program is self.program:
                self._blend(mesh, target, part, pose)
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

    def _blend(self, mesh: ObjectMesh, target, part: Submesh, pose: np.ndarray) -> None:
        """Renders half-transparent triangles, the farthest first; they hide nothing behind them."""
        triangles = mesh.corners[part.first : part.first + part.count].reshape(-1, 3, 9)
        order = np.argsort(triangles[..., :3].mean(1) @ pose[:3, 2])
        vertices = self.gl.buffer(np.ascontiguousarray(triangles[order]).tobytes())
        array = self.gl.vertex_array(self.program, [(vertices, "3f 2f 4f", "position", "uv", "color")])
        self.gl.enable(self.gl.BLEND)
        for mode in _COVERAGE:
            self.gl.disable_direct(mode)
        target.depth_mask = False
        array.render()
        target.depth_mask = True
        self.gl.disable(self.gl.BLEND)
        for mode in _COVERAGE:
            self.gl.enable_direct(mode)
        array.release()
        vertices.release()


def projection(near: float, far: float) -> np.ndarray:
    cotangent = 1 / np.tan(0.5 * np.radians(FOV_Y))
    result = np.zeros((4, 4))
    result[0, 0] = result[1, 1] = cotangent
    result[2, 2], result[2, 3] = (far + near) / (near - far), 2 * far * near / (near - far)
    result[3, 2] = -1
    return result


def is_visible(pictures: np.ndarray) -> bool:
    """Whether something is seen in nearly all pictures [..., H, W, 4]."""
    return bool(pictures[..., 3].any(axis=(-2, -1)).mean() >= VISIBLE)
