"""What Blender and the worker say to each other: JSON-RPC 2.0, one message a line, over the worker's stdin and stdout.

Blender asks (each request has an `id`; each answer carries it back):

    initialize   {}                            -> Initialized: versions, device, presets and what each can do
    generate     {job, image | prompt}         -> a job's result: GenerateRequest, GenerateResult
    sample       {job, image | prompt, seeds}  -> a job's result: SampleRequest, SampleResult
    reconstruct  {job, views}                  -> a job's result: ReconstructRequest, GenerateResult
    mesh         {job, ply}                    -> a job's result: MeshRequest, MeshResult
    convert      {job, file, formats}          -> a job's result: ConvertRequest, ConvertResult
    matte        {job, image}                  -> a job's result: MatteRequest, MatteResult
    load         {job, preset, mode}           -> a job's result: LoadRequest, LoadResult
    cancel       {job}                         -> {"job": ..., "cancelled": bool}; the job then ends in an error
    shutdown     {}                            -> {}; the worker leaves

The worker tells, without an `id`:

    progress     {job, stage, stage_index, stages, step, steps, preview}

One job runs at a time; a second waits its turn. `cancel` takes effect within one denoising step, or at once for a job
that waits. Pictures and Gaussians go by file, written under another name and renamed when whole. The worker leaves when
its stdin ends. Nothing but messages is on its stdout.
"""

from __future__ import annotations

import json
import math
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from .errors import LGMError

PROTOCOL_VERSION = 5

_UPDATE = "Restart Blender, so that add-on and worker are of one version."  # they are the only ones who write messages

PARSE_ERROR = -32700
INVALID_REQUEST = -32600
METHOD_NOT_FOUND = -32601
INVALID_PARAMS = -32602
JOB_FAILED = -32000  # error.data is a JobError

OutputKind = Literal["splats", "mesh", "both"]
VIEW_NAMES = ("front", "right", "back", "left")  # from azimuth 0, 90, 180, 270; so Blender names its views, too
MAX_CANDIDATES = 16
DEVICES = ("auto", "cpu", "cuda", "mps")  # what computes; 'auto' is the GPU where there is one, 'cuda' AMD's too
FACES, TEXTURE_SIZE = 20_000, 2048  # what a mesh has if nobody says otherwise

# An image that can't be used is told before any model is loaded. A text alone skips 'matting'. Where a mesh is made,
# its stages come before 'save'.
STAGES = ("matting", "load", "views", "gaussians", "floaters", "save")
MESH_STAGES = ("render", "fuse", "simplify", "refine", "unwrap", "bake")
SAMPLE_STAGES = ("matting", "load", "views", "save")
RECONSTRUCT_STAGES = ("matting", "load", "gaussians", "floaters", "save")
CONVERT_STAGES = ("read", "save")
MATTE_STAGES = ("matting", "save")
STAGE_LABELS = {
    "read": "Reading the splats",
    "load": "Loading the models",
    "matting": "Cutting out the object",
    "views": "Sampling the views",
    "gaussians": "Placing the Gaussians",
    "floaters": "Removing floaters",
    "render": "Rendering the Gaussians from all round",
    "fuse": "Finding the surface",
    "simplify": "Simplifying the mesh",
    "refine": "Fitting its outlines",
    "unwrap": "Unwrapping it",
    "bake": "Painting the texture",
    "save": "Saving",
}


@dataclass(frozen=True)
class _Sampling:
    """What views are sampled of, and how. Paths are absolute.

    Attributes:
        output: Folder that receives the files; made if missing.
        image: The input image, or None.
        prompt: The text, or ''. An image, a prompt or both must be given.
        name: Stem of the files' names; '' takes the image's, or the prompt's first words.
        negative_prompt: What the views should not show; None takes the preset's.
        preset: A name from `initialize`'s presets.
        steps: Denoising steps, or None for the preset's.
        guidance: Classifier-free guidance scale (1 is none), or None for the preset's.
        view_samples: How many samples of the views are averaged, 1 to 16, or None for the preset's. One is crisp; the
            mean of more is nearer to the ground truth, and softer where they differ.
        elevation: Degrees of the input view above the object, -90 to 90.
        device: One of DEVICES.
        previews: Whether progress messages carry a picture of the views so far.
        matting, matting_threshold, mask: How the object is cut out of the image: see MatteRequest.
    """

    job: str
    output: str
    image: str | None = None
    prompt: str = ""
    name: str = ""
    negative_prompt: str | None = None
    preset: str = "mini"
    steps: int | None = None
    guidance: float | None = None
    view_samples: int | None = None
    elevation: float = 0.0
    device: str = "auto"
    previews: bool = True
    matting: str = "auto"
    matting_threshold: float | None = None
    mask: str | None = None


@dataclass(frozen=True)
class GenerateRequest(_Sampling):
    """An image, a text or both to splats or a mesh in files: NAME.ply, .glb, _views.png, _input.png and .json.

    Attributes:
        overwrite: Whether files of that name in `output` may be replaced; otherwise a number is appended.
        seed: 0 to 2**32 - 1.
        candidates: How many seeds from this one on are sampled, 1 to MAX_CANDIDATES; the one whose views agree best is
            made 3D, and the result's settings have its seed.
        output_kind: 'splats' (NAME.ply), 'mesh' (NAME.glb) or 'both'.
        faces, texture_size: Of the mesh: how many triangles at most, and the pixels of its texture's side.
        quads: Whether the mesh's triangles are joined to quads where they can be.
        splat_formats: In which formats the splats are written, of splat_files.WRITTEN; PLY always.
    """

    overwrite: bool = False
    seed: int = 0
    candidates: int = 1
    output_kind: str = "splats"
    faces: int = FACES
    texture_size: int = TEXTURE_SIZE
    quads: bool = False
    splat_formats: list[str] = field(default_factory=lambda: ["ply"])


@dataclass(frozen=True)
class SampleRequest(_Sampling):
    """Four views for each of several seeds, to choose from: NAME_SEED_front.png and so on, and NAME_input.png.

    Attributes:
        seeds: 1 to MAX_CANDIDATES different ones, sampled together.
        kept: Pictures of VIEW_NAMES that stay as they are, in that order, '' for those that are sampled to go with
            them; [] samples all four. They are square, as LGM's cameras see the object, on white or with alpha.
    """

    seeds: list[int] = field(default_factory=lambda: [0])
    kept: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Candidate:
    """The views of one seed.

    Attributes:
        seed: Theirs.
        views: Their files, in the order of VIEW_NAMES.
        agreement: How well they go together and with the input, 0 to 1 (worker/agreement.py).
    """

    seed: int
    views: list[str]
    agreement: float


@dataclass(frozen=True)
class SampleResult:
    """The views to choose from.

    Attributes:
        candidates: The one whose views agree best first.
        input: The matted, recentred input image, or None for text alone.
        settings, versions, timings, device, warnings: See GenerateResult.
    """

    job: str
    candidates: list[Candidate]
    input: str | None
    settings: dict[str, Any]
    versions: dict[str, str]
    timings: dict[str, float]
    device: str
    warnings: list[str] = field(default_factory=list)

    @property
    def file(self) -> str:
        """The first view of the best."""
        return self.candidates[0].views[0]

    @property
    def files(self) -> list[str]:
        """The views, the best candidate's first."""
        return [file for candidate in self.candidates for file in candidate.views]


@dataclass(frozen=True)
class ReconstructRequest:
    """Four pictures of an object to splats or a mesh, by LGM alone. Paths are absolute.

    Attributes:
        views: The pictures, in the order of VIEW_NAMES.
        framed: Whether they are square and as LGM's cameras see the object, on white or with alpha: rendered under such
            cameras, or sampled. Else they are cut out and framed, all by one scale.
        generated: Which of the four a model made, for an LGM that has learnt what to make of those; [] is none.
        elevation: Degrees that the four cameras are above the object, -90 to 90.
        quick: Whether nothing but NAME.ply is written, for who does it again and again; no floaters are looked for.
        facts: More for the result's settings: how the views were made.
        output, name, preset, device: See GenerateRequest; without a name the files get that of the first view.
        overwrite, output_kind, faces, texture_size, quads, splat_formats: See GenerateRequest.
    """

    job: str
    output: str
    views: list[str]
    framed: bool = False
    generated: list[bool] = field(default_factory=list)
    elevation: float = 0.0
    quick: bool = False
    facts: dict[str, Any] = field(default_factory=dict)
    name: str = ""
    overwrite: bool = False
    preset: str = "mini"
    device: str = "auto"
    output_kind: str = "splats"
    faces: int = FACES
    texture_size: int = TEXTURE_SIZE
    quads: bool = False
    splat_formats: list[str] = field(default_factory=lambda: ["ply"])


@dataclass(frozen=True)
class GenerateResult:
    """What a finished job left behind: files, and every setting that made them (NAME.json holds the same).

    Attributes:
        ply: The Gaussians, pruned, a 3DGS PLY in LGM's frame; None if only a mesh was asked for.
        views: A picture of the four views side by side, azimuth 0, 90, 180, 270; '' of a quick `reconstruct`.
        input: The matted, recentred input image, or None without one.
        json: The file that holds this result; '' of a quick `reconstruct`.
        gaussians: How many there are, in the PLY or behind the mesh.
        settings: The request as it was carried out, every default filled in; of 'matting', what was done.
        versions: Of the extension, Python, torch, numpy and the preset's weights.
        timings: Seconds of each stage, and 'total'.
        device: 'cpu', or the GPU's name.
        warnings: Sentences for the user.
        glb: The textured mesh, in LGM's frame (which is glTF's); None if only splats were asked for.
        faces: How many triangles and quads it has.
        splat_files: The Gaussians in other formats than PLY, if they were asked for.
    """

    job: str
    ply: str | None
    views: str
    input: str | None
    json: str
    gaussians: int
    settings: dict[str, Any]
    versions: dict[str, str]
    timings: dict[str, float]
    device: str
    warnings: list[str] = field(default_factory=list)
    glb: str | None = None
    faces: int = 0
    splat_files: list[str] = field(default_factory=list)

    @property
    def file(self) -> str:
        """The splats, or the mesh where there are none."""
        return self.ply or self.glb or ""

    @property
    def files(self) -> list[str]:
        """All of them."""
        return [file for file in (self.ply, *self.splat_files, self.glb, self.views, self.input, self.json) if file]


@dataclass(frozen=True)
class MeshRequest:
    """Splats in a file to a mesh in a file. Paths are absolute.

    Attributes:
        ply: A 3DGS PLY, or any other file of splats.
        output: Folder that receives NAME.glb; made if missing.
        up: Which of the file's axes points up: 'y', '-y', 'z', '-z', 'x' or '-x'.
        name: Stem of the file's name; '' takes the PLY's.
        overwrite, faces, texture_size, quads, device: See GenerateRequest.
    """

    job: str
    ply: str
    output: str
    up: str = "y"
    name: str = ""
    overwrite: bool = False
    faces: int = FACES
    texture_size: int = TEXTURE_SIZE
    quads: bool = False
    device: str = "auto"


@dataclass(frozen=True)
class MeshResult:
    """The mesh that a job left behind.

    Attributes:
        glb: The textured mesh, y up, in the PLY's own scale and place.
        gaussians, faces: How many the PLY and the mesh have.
        settings, timings, device, warnings: See GenerateResult.
    """

    job: str
    glb: str
    gaussians: int
    faces: int
    settings: dict[str, Any]
    timings: dict[str, float]
    device: str
    warnings: list[str] = field(default_factory=list)

    @property
    def file(self) -> str:
        """The mesh."""
        return self.glb


@dataclass(frozen=True)
class ConvertRequest:
    """A file of splats to files of other formats. Paths are absolute.

    Attributes:
        file: Splats of any format that splat_files.FORMATS names.
        output: Folder that receives the files; made if missing.
        formats: Some of splat_files.WRITTEN.
        up: Which of the file's axes points up; what is written is y up, LGM's frame. See MeshRequest.
        size: Longest side of what is written, stray Gaussians aside; 0 keeps the file's units.
        pad: Whether a PLY gets normals and spherical harmonics of degree 3, zeros where there are none.
        name: Stem of the files' names; '' takes the file's.
        overwrite: See GenerateRequest.
    """

    job: str
    file: str
    output: str
    formats: list[str] = field(default_factory=lambda: ["ply"])
    up: str = "y"
    size: float = 0.0
    pad: bool = False
    name: str = ""
    overwrite: bool = False


@dataclass(frozen=True)
class ConvertResult:
    """The files that a job left behind.

    Attributes:
        files: Their paths, in the order of the formats asked for.
        gaussians: How many there are.
        settings, timings, device, warnings: See GenerateResult.
    """

    job: str
    files: list[str]
    gaussians: int
    settings: dict[str, Any]
    timings: dict[str, float]
    device: str = "cpu"
    warnings: list[str] = field(default_factory=list)

    @property
    def file(self) -> str:
        """The first one."""
        return self.files[0]


@dataclass(frozen=True)
class LoadRequest:
    """Has the models loaded that `generate` would need, before anybody asks for it.

    Attributes:
        mode: What the models start from: 'image' or 'text'.
        preset, device: See GenerateRequest.
    """

    job: str
    preset: str = "mini"
    mode: str = "image"
    device: str = "auto"


@dataclass(frozen=True)
class LoadResult:
    """What became of it.

    Attributes:
        loaded: Whether the models are in memory now.
        timings, device, warnings: See GenerateResult; a warning says why nothing was loaded.
    """

    job: str
    loaded: bool
    timings: dict[str, float]
    device: str
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class MatteRequest:
    """An image's object, cut out as a `generate` of the same image would. Paths are absolute.

    Attributes:
        image: The image.
        output: Folder that receives NAME_cutout.png, NAME_input.png and NAME_preview.png; made if missing.
        matting: 'alpha' (the image's own), 'border' (a plain background, by the colours of the image's border),
            'network' (any background; it must have been fetched), or 'auto': the first of these that can.
        matting_threshold: 0 to 1, or None for the method's own; more cuts away more. Of 'alpha' and 'network', the
            opacity below which a pixel is cut away; of 'border', how far a colour of the object is from the
            background's (1 is 50 in CIELAB).
        mask: A picture whose white is the object, of any size; it replaces method and threshold.
        name, overwrite: See GenerateRequest.
    """

    job: str
    image: str
    output: str
    matting: str = "auto"
    matting_threshold: float | None = None
    mask: str | None = None
    name: str = ""
    overwrite: bool = False


@dataclass(frozen=True)
class MatteResult:
    """The cut-out that a job left behind.

    Attributes:
        cutout: The image with straight alpha in its own framing, its longer side at most 1024 pixels.
        input: The object recentred on white, 256 x 256, as the models see it.
        preview: Both side by side, each 256 x 256, the first one over a chequer.
        matting: How it was cut out: 'mask', 'alpha', 'border' or 'network'.
        settings, timings, device, warnings: See GenerateResult.
    """

    job: str
    cutout: str
    input: str
    preview: str
    matting: str
    settings: dict[str, Any]
    timings: dict[str, float]
    device: str = "cpu"
    warnings: list[str] = field(default_factory=list)

    @property
    def file(self) -> str:
        """The cut-out."""
        return self.cutout


Request = (
    GenerateRequest | SampleRequest | ReconstructRequest | MeshRequest | ConvertRequest | LoadRequest | MatteRequest
)
Result = GenerateResult | SampleResult | MeshResult | ConvertResult | LoadResult | MatteResult
JOBS: dict[str, tuple[type[Request], type[Result]]] = {  # method: what is asked, what is answered
    "generate": (GenerateRequest, GenerateResult),
    "sample": (SampleRequest, SampleResult),
    "reconstruct": (ReconstructRequest, GenerateResult),
    "mesh": (MeshRequest, MeshResult),
    "convert": (ConvertRequest, ConvertResult),
    "load": (LoadRequest, LoadResult),
    "matte": (MatteRequest, MatteResult),
}


@dataclass(frozen=True)
class Progress:
    """How far a job is: `step` of `steps` within stage number `stage_index` of `stages`, `preview` a picture's path."""

    job: str
    stage: str
    stage_index: int
    stages: int
    step: int = 0
    steps: int = 0
    preview: str | None = None

    @property
    def label(self) -> str:
        """The stage in words."""
        return STAGE_LABELS.get(self.stage, self.stage)


@dataclass(frozen=True)
class PresetInfo:
    """A preset as `initialize` tells it.

    Attributes:
        modes: Subset of 'image', 'text'.
        ready: Whether its weights are here and whole.
        problem: If not ready, a sentence that says what is missing and what to do.
        terms: If it can be fetched, lines that say how large it is, under which licences, and where it goes.
        text_model: Folder of a multi-view model whose tokenizer reads its prompts (core/prompts.py), or ''.
    """

    name: str
    label: str
    modes: list[str]
    ready: bool
    problem: str = ""
    terms: str = ""
    text_model: str = ""


@dataclass(frozen=True)
class Initialized:
    """The worker's answer to `initialize`. `device` is what 'auto' takes: one of DEVICES; `gpus`, how many it sees."""

    protocol: int
    version: str
    python: str
    torch: str
    device: str
    device_name: str
    presets: list[PresetInfo]
    log: str
    gpus: int = 0


@dataclass(frozen=True)
class JobError:
    """`data` of a failed job's error. `log` is the worker's log file."""

    job: str
    kind: str
    log: str = ""


def to_params(value: Any) -> dict[str, Any]:
    """A message's dataclass as a JSON object."""
    return asdict(value)


def from_params(cls: type, params: Any) -> Any:
    """A message's dataclass from a JSON object, its names and simple types checked.

    Raises:
        LGMError: If a field is missing, unknown or of another type.
    """
    if not isinstance(params, dict):
        raise LGMError(f"{cls.__name__} needs a JSON object, not {type(params).__name__}. {_UPDATE}")
    known = {f.name: f for f in fields(cls)}
    if unknown := sorted(set(params) - set(known)):
        raise LGMError(f"{cls.__name__} has no field {', '.join(map(repr, unknown))[:200]}. {_UPDATE}")
    required = (name for name, f in known.items() if f.default is MISSING and f.default_factory is MISSING)
    if missing := sorted(set(required) - set(params)):
        raise LGMError(f"{cls.__name__} needs {', '.join(map(repr, missing))}. {_UPDATE}")
    hints = get_type_hints(cls)
    values = {}
    for name, value in params.items():
        hint = hints[name]
        if (parts := get_args(hint)) and is_dataclass(parts[0]) and isinstance(value, list):
            value = [from_params(parts[0], item) for item in value]
        elif isinstance(value, int) and not isinstance(value, bool) and hint in (float, float | None):
            value = float(value) if abs(value) < 1 << 1000 else math.inf
        elif not _fits(value, hint):
            raise LGMError(f"{cls.__name__}'s {name!r} can't be {repr(value)[:200]}. {_UPDATE}")
        values[name] = value
    return cls(**values)


def _fits(value: Any, hint: Any) -> bool:
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    for kind in kinds:
        plain, parts = get_origin(kind) or kind, get_args(kind)
        if plain is Any:
            return True
        if isinstance(value, plain) and (plain is bool or not isinstance(value, bool)):
            return plain is not list or all(_fits(item, parts[0]) for item in value)
    return False


def request(id: int, method: str, params: Any = None) -> dict[str, Any]:
    """A JSON-RPC request."""
    return {"jsonrpc": "2.0", "id": id, "method": method, "params": params if params is not None else {}}


def notification(method: str, params: Any) -> dict[str, Any]:
    """A JSON-RPC notification."""
    return {"jsonrpc": "2.0", "method": method, "params": params}


def response(id: int | str | None, result: Any) -> dict[str, Any]:
    """A JSON-RPC answer."""
    return {"jsonrpc": "2.0", "id": id, "result": result}


def error_response(id: int | str | None, code: int, message: str, data: Any = None) -> dict[str, Any]:
    """A JSON-RPC error; `message` is a sentence for the user."""
    error = {"code": code, "message": message}
    if data is not None:
        error["data"] = data
    return {"jsonrpc": "2.0", "id": id, "error": error}


def encode(message: dict[str, Any]) -> bytes:
    """One message as one line of UTF-8 with its newline. Non-ASCII letters are escaped: no console can break them."""
    return json.dumps(message, allow_nan=False).encode("ascii") + b"\n"


def decode(line: bytes) -> dict[str, Any]:
    """The message in one line.

    Raises:
        ValueError: If the line is not a JSON object.
    """
    message = json.loads(line)
    if not isinstance(message, dict):
        raise ValueError("a message must be a JSON object")
    return message
