"""LGM for Blender: an image or a sentence becomes 3D Gaussians or a textured mesh, on the artist's own machine."""


def register():
    """Called by Blender when the extension is enabled."""
    from . import blender

    blender.register()


def unregister():
    """Called by Blender when the extension is disabled; gives back everything `register` took."""
    from . import blender

    blender.unregister()
