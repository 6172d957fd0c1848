"""Training LGM and the multi-view model: views of meshes, losses, loops. See docs/training.md."""
