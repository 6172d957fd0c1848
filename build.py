#!/usr/bin/env python3
"""Installs, tests and packages LGM for Blender. Needs Python 3.11 or 3.13, and nothing else.

python build.py demo [--image FILE] [--elevation E] [--out DIR] [--seed N]   one image becomes splats in a Blender scene
python build.py test [pytest arguments]                      all tests, in every Blender whose Python is here
python build.py lint                                         ruff's rules and format
python build.py package [--repository [URL]]                 the extension zip, in dist/; or all that a server needs
python build.py lock [--upgrade]                             which files the worker is made of, by their SHA-256
python build.py wheels FOLDER                                these files, for computers without a network
python build.py clean [--out]                                gives back everything the others made
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

if sys.version_info < (3, 11):  # noqa: UP036 - this file is what tells the user so
    sys.exit(f"build.py needs Python 3.11 or 3.13; this is {sys.version.split()[0]} ({sys.executable}).")

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.dont_write_bytecode = True

import tools  # noqa: E402
from tools import demo, environments, lock, packaging, tests, wheels  # noqa: E402
from tools.terminal import Failure, relative  # noqa: E402


def clean(out: bool) -> None:
    """Removes what the other commands made; out/ holds results and is kept unless asked for."""
    folders = [*tools.ROOT.glob(".venv*"), tools.BUILD, tools.DIST]
    folders += [path for room in ("lgm_blender", "tests", "tools") for path in (tools.ROOT / room).rglob("__pycache__")]
    for folder in [*folders, *([tools.ROOT / "out"] if out else [])]:
        if folder.is_dir():
            shutil.rmtree(folder)
            print(f"removed {relative(folder)}")


def package(url: str | None) -> None:
    """Makes the zip or, with a URL or '', a repository with it, and says what to do with that in Blender."""
    if url is None:
        made = packaging.package(environments.main_blender())
        print(f"Made {relative(made)}. In Blender: Preferences > Get Extensions > Install from Disk.")
        return
    made = packaging.repository(environments.main_blender())
    address = f"{url.rstrip('/') or 'its address'}/index.json"
    print(
        f"Made {relative(made)}. Put its files on a web server. In Blender: Preferences > Get Extensions > Repositories"
        f" > + > Add Remote Repository, {address}. Blender then finds each version that you put there."
    )


def seed(text: str) -> int:
    if not 0 <= int(text) < 2**32:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and {2**32 - 1}")
    return int(text)


def parse() -> argparse.Namespace:
    """The command line; everything after `test` is pytest's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add = commands.add_parser("demo", help="one image becomes splats in a Blender scene").add_argument
    add("--image", type=Path, default=demo.SAMPLE, help="the image (default: %(default)s)")
    add("--out", type=Path, default=tools.ROOT / "out", help="where the files go (default: %(default)s)")
    about = "degrees that its camera is above the object (default: 0, the sample's 10)"
    add("--elevation", type=float, help=about)
    add("--seed", type=seed, default=0, help="0 to 4294967295 (default: %(default)s)")
    commands.add_parser("test", help="all tests; arguments go on to pytest")
    commands.add_parser("lint", help="ruff's checks and format")
    add = commands.add_parser("package", help="the extension zip, in dist/").add_argument
    about = "a folder that Blender can update from, in dist/repository/; URL is where it will be found"
    add("--repository", nargs="?", const="", metavar="URL", help=about)
    add = commands.add_parser("lock", help="writes lgm_blender/worker/locked/ anew").add_argument
    add("--upgrade", action="store_true", help="take the newest versions that the worker's list allows")
    add = commands.add_parser("wheels", help="fetches all that the worker is made of on this system").add_argument
    add("folder", type=Path, metavar="FOLDER", help="where the files go")
    add = commands.add_parser("clean", help="gives back environments, build/ and dist/").add_argument
    add("--out", action="store_true", help="out/ too")
    commands.add_parser("apt-packages", help="prints the Debian packages that Blender needs without a screen")
    if sys.argv[1:2] == ["test"]:
        return argparse.Namespace(command="test", arguments=sys.argv[2:])
    return parser.parse_args()


def main() -> int:
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # a console of another code page must not stop us at a file's name
    arguments = parse()
    try:
        if arguments.command == "demo":
            demo.demo(arguments.image, arguments.elevation, arguments.out, arguments.seed)
        elif arguments.command == "test":
            return tests.test(arguments.arguments)
        elif arguments.command == "lint":
            return tests.lint()
        elif arguments.command == "package":
            package(arguments.repository)
        elif arguments.command == "lock":
            lock.write_lock(arguments.upgrade)
        elif arguments.command == "wheels":
            wheels.fetch_wheels(arguments.folder)
        elif arguments.command == "clean":
            clean(arguments.out)
        else:
            print(" ".join(environments.APT_PACKAGES))
    except Failure as failure:
        print(f"\n{failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped. The same command goes on where it was.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
