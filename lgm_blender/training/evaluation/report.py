"""An evaluation's figures in words: the table, and the lines on a contact sheet."""

from __future__ import annotations

from typing import Any

# What is judged, in the order and by the names of the table.
NAMES = {
    "prediction": "prediction",
    "repeated_input": "input view repeated",
    "blank": "blank white",
}
FIGURES = {"psnr": "PSNR", "ssim": "SSIM", "lpips": "LPIPS", "iou": "IoU", "translucency": "transl."}


def row_lines(entry: dict[str, Any]) -> list[str]:
    """The figures beside a row of a sheet."""
    found, repeated = entry["scores"]["prediction"], entry["scores"]["repeated_input"]
    second = [f"{FIGURES[name]} {found[name]:.3f}" for name in ("lpips", "iou") if name in found]
    return [
        f"PSNR {found['psnr']:.1f} dB   SSIM {found['ssim']:.3f}",
        "   ".join(second),
        f"input repeated: {repeated['psnr']:.1f} dB",
        *(["placed smaller"] if entry.get("smaller") else []),
    ]


def words(entry: dict[str, Any]) -> str:
    """One object's figures, for the terminal."""
    found = entry["scores"]["prediction"]
    figures = [f"{FIGURES[name]} {value:.{1 if name == 'psnr' else 3}f}" for name, value in found.items()]
    return f"{entry['caption']}: {', '.join(figures)}"


def sheet_note(section: dict[str, Any]) -> str:
    """A sheet's second line."""
    count = len(section["objects"])
    if "scores" not in section:
        words = f"{count} prompts:  {section['non_empty']:.0%} not empty;  consistency {section['consistency']:.1f} dB"
        found = section["retrieval"]
        return words + (f";  retrieval: median rank {found['median_rank']:.0f} of {found['objects']}" if found else "")
    parts = []
    for key, name in NAMES.items():
        found = section["scores"][key]
        parts.append(f"{name} {found['psnr']:.1f} dB" + (f", LPIPS {found['lpips']:.3f}" if "lpips" in found else ""))
    return f"{count} objects:  " + ";  ".join(parts)


def table(results: dict[str, Any]) -> str:
    """The results as text: a line for each thing judged, a column for each figure."""
    lines = []
    for mode, section in results["modes"].items():
        count = len(section["objects"])
        if "scores" not in section:
            lines += [f"{mode} ({count} prompts)", f"  {'not empty':24}{section['non_empty']:8.0%}"]
            lines += [f"  {'consistency':24}{section['consistency']:8.2f} dB"]
            if section["clip"]:
                lines += [f"  {'CLIP score':24}{section['clip']['score']:8.2f} ({section['clip']['model']})"]
            if found := section["retrieval"]:
                lines += [
                    f"  {'retrieval: first':24}{found['first']:8.0%}",
                    f"  {'retrieval: first five':24}{found['first_five']:8.0%}",
                    f"  {'retrieval: median rank':24}{found['median_rank']:8.1f} of {found['objects']} "
                    f"(chance: {found['chance_median_rank']:.1f})",
                ]
            continue
        for title, key in ((f"{mode} ({count} objects)", "scores"), ("  generated views", "views_scores")):
            if key not in section:
                continue
            figures = list(section[key]["prediction"])
            lines.append(f"{title:26}" + "".join(f"{FIGURES[figure]:>8}" for figure in figures))
            for name, words in NAMES.items():
                values = section[key][name]
                cells = "".join(
                    f"{values[figure]:8.{2 if figure == 'psnr' else 3}f}" if figure in values else " " * 8
                    for figure in figures
                )
                lines.append(f"  {words:24}{cells}")
    return "\n".join(lines)
