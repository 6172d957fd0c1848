"""Candidates: several seeds' views, from which one or more become 3D."""

from __future__ import annotations

from functools import partial

import bpy

from ...core.errors import LGMError
from ...core.messages import ReconstructRequest
from .. import session, views
from ..scene import images
from ..settings import output_folder, preference
from . import icons
from .operators import Operator


class _OfCandidate(Operator):
    """What operators share that do something with a candidate."""

    seed: bpy.props.StringProperty(name="Seed", description="The candidate's", options={"SKIP_SAVE"})

    @classmethod
    def obstacle(cls, context) -> str:
        return "" if session.current().choice else "There are no candidates. Generate some first"

    def chosen(self) -> int:
        """The candidate's seed.

        Raises:
            LGMError: If there is no such candidate.
        """
        seeds = {str(candidate.seed): candidate.seed for candidate in session.current().choice.result.candidates}
        if self.seed not in seeds:
            raise LGMError(f"There is no candidate of seed {self.seed}. Choose one of {', '.join(seeds)}.")
        return seeds[self.seed]


class LGM_OT_make_candidate(_OfCandidate, bpy.types.Operator):
    """Turn this candidate's views into splats, a mesh or both. Several may be clicked: they are made one by one"""

    bl_idname = "lgm.make_candidate"
    bl_label = "Make 3D"
    bl_options = {"REGISTER"}  # the undo step comes with the result

    wait: bpy.props.BoolProperty(
        name="Wait", description="Return when the result is there; the window stands still until then",
        options={"SKIP_SAVE"},
    )  # fmt: skip

    def act(self, context):
        now, seed = session.current(), self.chosen()
        request = candidate_request(context.scene.lgm, now.choice, seed)
        now.queue(partial(now.begin, request, context.scene, size=context.scene.lgm.size))
        if not (self.wait or bpy.app.background):
            return {"FINISHED"}
        now.wait()
        if now.problem:
            self.report({"ERROR"}, now.problem.sentence)
        return {"FINISHED"} if now.ended_well else {"CANCELLED"}


def candidate_request(settings, choice: session.Choice, seed: int) -> ReconstructRequest:
    """What is asked for a candidate, as the scene is set."""
    result = choice.result
    candidate = next(candidate for candidate in result.candidates if candidate.seed == seed)
    name = result.settings["name"]
    return ReconstructRequest(
        job="",
        output=str(output_folder(settings.output)),
        views=candidate.views,
        framed=True,
        generated=result.settings["generated"],
        elevation=result.settings["elevation"],
        facts=views.candidate_facts(result, seed),
        name=images.file_stem(name),
        preset=choice.request.preset,
        device=preference("device"),
        output_kind=settings.output_kind,
        faces=settings.faces,
        texture_size=int(settings.texture_size),
        quads=settings.quads,
    )


class LGM_OT_views_from_candidate(_OfCandidate, bpy.types.Operator):
    """Take this candidate's views into the sub-panel Views, to paint on them, or to sample some of them again"""

    bl_idname = "lgm.views_from_candidate"
    bl_label = "Take Its Views"
    bl_options = {"REGISTER", "UNDO"}

    def act(self, context):
        views.fill_from_candidate(context.scene, session.current().choice.result, self.chosen())
        return {"FINISHED"}


class LGM_OT_drop_candidates(_OfCandidate, bpy.types.Operator):
    """Take the candidates away. What was made of them stays"""

    bl_idname = "lgm.drop_candidates"
    bl_label = "Drop Candidates"

    def act(self, context):
        session.current().choice = None
        icons.clear_files()
        return {"FINISHED"}


CLASSES = (LGM_OT_make_candidate, LGM_OT_views_from_candidate, LGM_OT_drop_candidates)
