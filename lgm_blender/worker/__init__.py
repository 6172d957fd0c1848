"""The second process: everything that needs torch. Nothing here is imported by Blender."""
