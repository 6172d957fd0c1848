"""summary.html: what a batch made, to look through in a browser. One file without scripts; it names pictures beside it.

What it shows was named by strangers (files, prompts, errors): all of it is escaped.
"""

from __future__ import annotations

import html
import os
import statistics
import time
import urllib.parse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import LGMError
from ..files import output_error, replacing
from .journal import Journal
from .progress import in_words

NAME = "summary.html"
OURS = b"<!-- a batch of LGM for Blender -->"
SHARE = 0.01  # of the time, at most, goes into it while the batch runs
INTERVAL = 5.0  # seconds

LABELS = {
    "blend": "Blender scene",
    "ply": "splats",
    "glb": "mesh",
    "png": "render",
    "views": "views",
    "json": "settings",
}
KINDS = {
    "bad_input": "the input",
    "output": "the output folder",
    "weights": "the models' weights",
    "matting": "the background",
    "out_of_memory": "memory",
    "device": "the GPU",
    "worker": "the worker",
    "internal": "a defect",
}

_PAGE = """\
<!doctype html>
{mark}
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy" content="script-src 'none'; object-src 'none'; form-action 'none'">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --line: #8884; --soft: #888; --bad: #d33; --odd: #c80; }}
body {{ font: 15px/1.45 system-ui, sans-serif; margin: 0 auto; padding: 1.5rem; max-width: 74rem; }}
h1 {{ font-size: 1.35rem; margin: 0 0 .2rem; overflow-wrap: anywhere; }}
header p {{ margin: .1rem 0; color: var(--soft); }}
input.show {{ margin: 1.1rem .2rem 1rem 0; }}
label {{ margin-right: 1rem; cursor: pointer; }}
article {{ display: grid; grid-template-columns: auto minmax(0, 1fr); gap: 0 1.2rem; padding: .9rem 0;
  border-top: 1px solid var(--line); content-visibility: auto; contain-intrinsic-size: auto 190px; }}
.pictures {{ display: flex; gap: .5rem; align-items: center; }}
.pictures > * {{ display: grid; place-items: center; height: 160px; min-width: 160px; }}
.pictures span {{ color: var(--soft); border: 1px dashed var(--line); border-radius: 6px; width: 160px;
  box-sizing: border-box; text-align: center; font-size: .85rem; }}
.pictures img {{ max-height: 160px; max-width: 480px; border-radius: 6px; box-shadow: 0 0 0 1px var(--line);
  background: repeating-conic-gradient(#ddd 0 25%, #fff 0 50%) 0 / 16px 16px; }}
.pictures .input {{ width: 160px; }}
.pictures .input img {{ max-width: 160px; }}
h2 {{ font-size: 1rem; margin: 0 0 .15rem; overflow-wrap: anywhere; }}
.facts, .times {{ color: var(--soft); font-size: .87rem; overflow-wrap: anywhere; }}
.prompt {{ font-style: italic; overflow-wrap: anywhere; }}
.files a {{ margin-right: .8rem; }}
.error {{ color: var(--bad); font-weight: 600; overflow-wrap: anywhere; }}
.warning {{ color: var(--odd); overflow-wrap: anywhere; }}
p {{ margin: .15rem 0; }}
#failed:checked ~ main article:not(.bad), #warned:checked ~ main article:not(.odd) {{ display: none; }}
@media (max-width: 46rem) {{ article {{ grid-template-columns: 1fr; }} .pictures {{ flex-wrap: wrap; }} }}
</style>
<header><h1>{title}</h1>{totals}</header>
<input type="radio" name="show" class="show" id="all" checked><label for="all">All {count}</label>
<input type="radio" name="show" class="show" id="failed"><label for="failed">Failed only: {bad}</label>
<input type="radio" name="show" class="show" id="warned"><label for="warned">With warnings: {odd}</label>
<main>
{items}
</main>
</html>
"""


class Summary:
    """The page of a journal's folder, written whole each time.

    Args:
        journal: Says what to show.

    Raises:
        LGMError: (kind 'output') If a file of its name is there that is no summary, or can't be read.
    """

    def __init__(self, journal: Journal):
        self.journal = journal
        self.path = journal.folder / NAME
        self._next = time.monotonic() + INTERVAL
        try:
            ours = not self.path.exists() or OURS in self.path.read_bytes()[:200]
        except OSError as error:
            raise output_error(self.path, error) from error
        if not ours:
            raise LGMError(
                f"{self.path} is there and no batch's summary. Move it away, or choose another output folder.", "output"
            )

    def write(self) -> None:
        """Writes it.

        Raises:
            LGMError: (kind 'output') If it can't be written.
        """
        began = time.monotonic()
        page = render_page(self.journal.folder, self.journal.latest())
        with replacing(self.path) as file:
            file.write(page.encode("utf-8", "backslashreplace"))
        now = time.monotonic()
        self._next = now + max(INTERVAL, (now - began) / SHARE)

    def write_sometimes(self) -> None:
        """Writes it if that was not done for long enough; a failure waits for the end."""
        if time.monotonic() >= self._next:
            try:
                self.write()
            except (LGMError, OSError):
                self._next = time.monotonic() + 60.0


def render_page(folder: Path, records: list[dict[str, Any]]) -> str:
    """The page of these records, failures first."""
    records = sorted(records, key=lambda record: record["ok"])  # stable: else in the order of their ends
    bad = sum(not record["ok"] for record in records)
    odd = sum(bool(record.get("warnings")) for record in records)
    return _PAGE.format(
        mark=OURS.decode(),
        title=_text(folder.name or str(folder)),
        totals=_totals(records, bad),
        count=f"{len(records):,}",
        bad=f"{bad:,}",
        odd=f"{odd:,}",
        items="\n".join(_article(folder, record) for record in records),
    )


def _totals(records: list[dict[str, Any]], bad: int) -> str:
    made = [record for record in records if record["ok"]]
    lines = [f"{len(made):,} made, {bad:,} failed"]
    times = [record["seconds"] for record in made if not record.get("skipped") and record.get("seconds")]
    if times:
        usual, slowest = statistics.median(times), max(times)
        lines[0] += f"; usually {_seconds(usual)} each, at most {_seconds(slowest)}"
    moments = sorted(record[end][:16].replace("T", " ") for record in records for end in ("started", "ended"))
    if moments:
        lines.append(f"From {moments[0]} to {moments[-1]} UTC")
    return "".join(f"<p>{_text(line)}</p>" for line in lines)


def _article(folder: Path, record: Mapping[str, Any]) -> str:
    made, source = record["ok"], record.get("input")
    title = Path(source).name if source else record["name"]
    kinds = " ".join(["good" if made else "bad"] + ["odd"] * bool(record.get("warnings")))
    pictures = record.get("thumbnails") or {}
    link = _link(folder, source) if source else ""
    full = record.get("png") or record.get("views")
    first = _picture(pictures.get("input"), link, "input", "no picture" if source else "from text")
    second = _picture(pictures.get("result"), _href(full) if full else "", "result", "")
    facts = [f"{record['gaussians']:,} Gaussians"] if record.get("gaussians") else []
    facts += [f"{record['faces']:,} faces"] if record.get("faces") else []
    facts += [f"seed {record['seed']}"] if record.get("seed") is not None else []
    facts += [f"elevation {record['elevation']:g}°"] if record.get("elevation") else []
    facts += [f"{record['attempts']} attempts"] if record.get("attempts", 1) > 1 else []
    facts += [_seconds(record["seconds"])] if record.get("seconds") else []
    times = record.get("timings") or {}
    spent = ", ".join(f"{stage} {_seconds(took)}" for stage, took in times.items() if stage != "total")
    named = "" if title.startswith(f"{record['name']}.") or title == record["name"] else f" → {_text(record['name'])}"
    lines = [f"<h2>{_text(title)}{named}</h2>"]
    if record.get("prompt"):
        lines.append(f'<p class="prompt">{_text(record["prompt"])}</p>')
    if not made:
        about = KINDS.get(record.get("kind"), "")
        lines.append(f'<p class="error">{_text(record.get("error"))}</p>')
        facts = [f"about {about}"] * bool(about) + facts
    lines += [f'<p class="warning">{_text(warning)}</p>' for warning in record.get("warnings") or []]
    lines.append(f'<p class="facts" title="{_text(spent)}">{_text(" · ".join(facts))}</p>')
    files = [(LABELS[kind], record[kind]) for kind in LABELS if record.get(kind)]
    files += [(file.rpartition(".")[2], file) for file in record.get("splat_files") or []]
    if files:
        links = "".join(f'<a href="{_href(file)}">{_text(label)}</a>' for label, file in files)
        lines.append(f'<p class="files">{links}</p>')
    return f'<article class="{kinds}"><div class="pictures">{first}{second}</div><div>{"".join(lines)}</div></article>'


def _picture(thumbnail: str | None, link: str, kind: str, otherwise: str) -> str:
    if not thumbnail:
        return f"<span>{_text(otherwise)}</span>" if otherwise else ""
    image = f'<img src="{_href(thumbnail)}" alt="{kind}" loading="lazy" decoding="async">'
    return f'<a class="{kind}" href="{link}">{image}</a>' if link else f'<a class="{kind}">{image}</a>'


def _link(folder: Path, source: str) -> str:
    """From the page to an input: relative, so that both may be moved; across drives its address."""
    try:
        return _href(Path(os.path.relpath(source, folder)).as_posix())
    except ValueError:
        return html.escape(Path(source).as_uri())


def _href(path: str) -> str:
    """A relative path as an address. The './' keeps 'javascript:x' a file's name."""
    return html.escape("./" + urllib.parse.quote(os.fsencode(path)))


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else in_words(seconds)


def _text(text: Any) -> str:
    return html.escape(str("" if text is None else text))
