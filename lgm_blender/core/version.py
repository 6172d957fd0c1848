"""The extension's version, the same as in blender_manifest.toml."""

VERSION = "0.1.0"
