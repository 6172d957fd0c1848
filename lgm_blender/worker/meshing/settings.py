"""What can be asked of a mesh."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from ...core.errors import LGMError
from ...core.messages import FACES, TEXTURE_SIZE

Up = Literal["y", "-y", "z", "-z", "x", "-x"]
Method = Literal["fusion", "field", "poisson"]

FEWEST_FACES, MOST_FACES = 100, 1_000_000
TEXTURE_SIZES = (512, 1024, 2048, 4096)


@dataclass(frozen=True)
class MeshSettings:
    """How a mesh is made.

    Attributes:
        faces: How many triangles it has at most, 100 to 1,000,000; a quad is two.
        texture_size: Width and height of the texture: 512, 1024, 2048 or 4096.
        up: Which of the Gaussians' axes points up. LGM's is y; most 3DGS files of other programs have -y.
        device: One of messages.DEVICES.
        method: How the surface is found: 'fusion' of depths into a distance field; a 'field' of density (a NeRF)
            fitted to the views, as in LGM's paper, which takes minutes on a CPU; or screened 'poisson' through the
            depths, smooth also where scans have gaps and noise, which needs pymeshlab.
        quads: Whether triangles are joined to quads where they can be.
        remesh: Whether triangles are of one size and nearly equilateral instead of large where the surface is flat;
            needs pymeshlab.
    """

    faces: int = FACES
    texture_size: int = TEXTURE_SIZE
    up: Up = "y"
    device: str = "auto"
    method: Method = "fusion"
    quads: bool = False
    remesh: bool = False

    @classmethod
    def of(cls, request: Any) -> MeshSettings:
        """What a request or a command line says of a mesh: its attributes of the same names, as far as it has them."""
        names = [field.name for field in fields(cls) if hasattr(request, field.name)]
        return cls(**{name: getattr(request, name) for name in names})

    def check(self) -> None:
        """That every value is one that can be used.

        Raises:
            LGMError: If one is not.
        """
        if not FEWEST_FACES <= self.faces <= MOST_FACES:
            raise LGMError(f"The number of faces must be from {FEWEST_FACES} to {MOST_FACES:,}, not {self.faces:,}.")
        if self.texture_size not in TEXTURE_SIZES:
            sizes = ", ".join(map(str, TEXTURE_SIZES[:-1]))
            raise LGMError(f"The texture's size must be {sizes} or {TEXTURE_SIZES[-1]}, not {self.texture_size}.")
        if self.method not in get_args(Method):
            raise LGMError(f"There is no method '{self.method}'. Choose one of {', '.join(get_args(Method))}.")
        if self.up not in get_args(Up):
            raise LGMError(f"There is no axis '{self.up}'. Choose one of {', '.join(get_args(Up))}.")
