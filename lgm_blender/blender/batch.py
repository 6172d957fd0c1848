"""Many images become splats, meshes or both, without a window: docs/batch.md.

    blender --background --python …/lgm_blender/blender/batch.py -- --input FILES-OR-FOLDER --output DIR
    python …/lgm_blender/blender/batch.py -- …          with a Python that has bpy

For each image: NAME.ply (the splats; --splat-formats: others too), NAME.glb (the mesh), NAME.blend (a scene with them),
NAME.png (a render), NAME_views.png (the four views) and NAME.json (every setting, the seed, the versions, the time of
each stage). Files of splats are taken as well, in place of an image. One line of progress per input goes to stderr, one
JSON object per input to stdout and into results.jsonl; summary.html shows them all. The same command goes on where it
was stopped. The exit code is 0 if all went well, 1 if any failed, 2 if the command makes no sense. `run` is the same
for a script that runs inside Blender.
"""

if __name__ == "__main__":  # run as a script, this file belongs to no package; it goes on as a module of its own
    import pathlib
    import runpy

    runpy.run_path(str(pathlib.Path(__file__).with_name("script.py")))["run"](__file__)

import argparse
import contextlib
import signal
import traceback
from collections.abc import Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path

from ..core.affine import UPRIGHT
from ..core.arguments import count_or_auto, integer
from ..core.batch.items import Found, find_items
from ..core.batch.journal import Journal
from ..core.batch.options import add_options, settings_of
from ..core.batch.progress import Progress
from ..core.batch.run import Run, Task
from ..core.environment import PYTHON_VARIABLE
from ..core.errors import LGMError
from ..core.files import output_error
from ..core.paths import expanded
from . import command_line, settings
from .batch_maker import Made, Maker
from .command_line import EXIT_FAILED, EXIT_OK, Write, tell
from .engine import Engine, log_folder, worker_command
from .pool import Pool, choose_workers, worker_share
from .scene import render, results
from .scene.thumbnails import write_thumbnail

_SETTINGS = ("up", "object_size", "blend", "render", "size", "samples")  # of Blender's part


def make_parser() -> argparse.ArgumentParser:
    """The batch's command line."""
    parser = argparse.ArgumentParser(
        prog="batch.py", description="Makes splats or meshes from images, in Blender, without a window."
    )
    add_options(parser, "images, files of splats")
    add = parser.add_argument
    about = "the axis that points up in files of splats; of most captures it is -y: --up=-y (default: %(default)s)"
    add("--up", choices=tuple(UPRIGHT), default="y", help=about)
    about = "longest side in NAME.blend, 0 as LGM makes it (default: %(default)s)"
    add("--object-size", type=float, default=results.SIZE, metavar="METRES", help=about)
    add("--blend", action=argparse.BooleanOptionalAction, default=True, help="save NAME.blend")
    add("--render", action=argparse.BooleanOptionalAction, default=True, help="render NAME.png")
    add("--size", type=integer(16, 8192), default=512, help="the render's pixels a side (default: %(default)s)")
    usual = render.SAMPLES["CYCLES"]
    add("--samples", type=integer(1, 65536), default=None, help=f"of the render, a pixel (default: {usual})")
    about = "how many are made at once, each by a worker of its own; auto: one for each GPU (default: auto)"
    add("--workers", type=count_or_auto, default=None, metavar="N", help=about)
    about = "leave out images whose results are there although no journal says so, whatever made them"
    add("--skip-existing", action="store_true", help=about)
    return parser


def run(arguments: Sequence[str], write: Write | None = None) -> int:
    """Runs a batch; the exit code. It blocks until all is done, and opens new files in this Blender.

    Args:
        arguments: The command line after '--'.
        write: Receives one line of JSON per image, without a newline; printed to stdout by default.
    """
    return command_line.run(make_parser(), _run, arguments, write)


def _run(options: argparse.Namespace, write: Write) -> int:
    options.prompt = options.prompt.strip()
    options.device = options.device or settings.preference("device")
    if not options.input and not options.prompt:
        make_parser().error("give --input, --prompt or both")
    try:
        output = expanded(options.output).absolute()
        find_items(options.input, options.prompt, output)  # before the folder is made
        _make_folder(output)
        with contextlib.closing(Journal(output)) as journal:
            found = find_items(options.input, options.prompt, output, journal.names)
            return _make_all(found, options, journal, write)
    except LGMError as error:
        tell(error.message)
        return EXIT_FAILED


def _make_all(found: Found, options: argparse.Namespace, journal: Journal, write: Write) -> int:
    for remark in found.remarks:
        tell(remark)
    progress = Progress(len(found.items))
    run = Run(
        found.items,
        lambda item: settings_of(options, item, _SETTINGS),
        journal,
        progress,
        write,
        write_thumbnail,
        retries=options.retries,
        overwrite=options.overwrite,
    )
    try:
        if run.unfinished:
            with Pool(start_engines(options.workers, options.device, options.memory)) as pool:
                progress.workers = len(pool.engines)
                while run.unfinished:
                    while pool.has_room and (task := run.take()):
                        _give(pool, task, options, run)
                    for (task, maker), future in pool.ended():
                        _end(task, maker, future, run)
    finally:
        run.close()
    if run.bad:
        tell(f"{run.bad} of {len(found.items)} failed.")
    return EXIT_FAILED if run.bad else EXIT_OK


def _give(pool: Pool, task: Task, options: argparse.Namespace, run: Run) -> None:
    """Prepares a task and has a worker do its part."""
    show = partial(run.progress.show, str(task.item))
    maker = Maker(task.item, options, run.folder, show, task.saved)
    try:
        maker.prepare()
    except Exception as error:
        _fail(task, error, run)
        return
    pool.give((task, maker), partial(_make, task, maker))


def _make(task: Task, maker: Maker, engine: Engine) -> Made:
    """The worker's part of a task, in a thread."""
    with task.spending("worker"):
        return task.kept or maker.make(engine)


def _end(task: Task, maker: Maker, future: Future, run: Run) -> None:
    """Does Blender's part of a task that has come back from its worker."""
    try:
        task.kept = future.result()
        with task.spending("blender"):
            made = maker.finish(task.kept)
    except Exception as error:
        _fail(task, error, run)
    else:
        run.done(task, made)


def _fail(task: Task, error: Exception, run: Run) -> None:
    """Tells of a failure; whatever it is, one bad image must not stop the others."""
    if not isinstance(error, LGMError):
        traceback.print_exception(error)
        error = LGMError(f"Something went wrong in the add-on ({error!r}). Please report it.", "internal")
    run.failed(task, error)


def start_engines(workers: int | None, device: str, memory: float | None = None) -> list[Engine]:
    """The workers of a batch, the first of which is up: one that can't start would fail every image in turn.

    Args:
        workers: How many, or None for one on each GPU.
        device: See GenerateRequest.
        memory: GB that each may hold, or None.

    Raises:
        LGMError: (kind 'worker') If there is no Python for it, or it does not start.
    """
    first = make_engine(memory)
    try:
        info = first.wait_ready()
        count = choose_workers(workers, device, info)
        if count == 1:
            return [first]
        shares = [worker_share(number, count, info.gpus) for number in range(count)]
        others = [make_engine(memory, share, number) for number, share in enumerate(shares[1:], 1)]
        first.variables |= shares[0]
        first.stop()  # the next one, which has its share only, is started when there is something to do
        return [first, *others]
    except BaseException:
        first.close()
        raise


def make_engine(memory: float | None = None, variables: dict[str, str] | None = None, number: int = 0) -> Engine:
    """A worker of the preferences, the environment or build.py.

    Args:
        memory: GB that it may hold, or None.
        variables: Environment variables beside those that it has anyway.
        number: Of the worker; all but the first have a folder of their own for their logs.

    Raises:
        LGMError: (kind 'worker') If there is none.
    """
    try:
        python = settings.worker_python()
    except LGMError as error:
        raise LGMError(
            f"{error.message} Or set {PYTHON_VARIABLE} to a Python that has the packages.", "worker"
        ) from error
    limit = [] if memory is None else ["--memory", f"{memory:g}"]
    return Engine(
        worker_command(python, "serve", *limit),
        variables={**settings.worker_variables(), **(variables or {})},
        logs=log_folder() / f"worker_{number + 1}" if number else None,
    )


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise output_error(folder / "-", error) from error


def main() -> None:
    """Runs the command line of this process and ends the process."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    command_line.main(run, "Stopped. The same command goes on from here.")
