"""The kinds of pictures that can be read, by the suffixes of their names: the one list of them."""

from __future__ import annotations

# The worker reads these by itself; a TIFF of floats only if it has one channel.
WORKER_PICTURES = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".webp", ".avif", ".tif", ".tiff", ".bmp", ".gif", ".tga"),
    *(".jp2", ".j2k", ".j2c", ".jpx", ".jpf", ".dds", ".ico", ".pcx", ".ppm", ".pgm", ".pbm", ".pnm"),
)
# Blender reads these, and makes PNGs of them for the worker.
BLENDER_PICTURES = (".exr", ".hdr", ".dpx", ".cin", ".psd", ".psb", ".pdd", ".sgi", ".rgb", ".rgba", ".tx")
# Pictures too, but nothing here reads them.
OTHER_PICTURES = (
    *(".heic", ".heif", ".hif", ".jxl", ".svg", ".eps", ".pdf", ".ai", ".xcf", ".kra", ".dng", ".cr2", ".cr3"),
    *(".nef", ".arw", ".raf", ".orf", ".rw2", ".pef", ".srw"),
)
