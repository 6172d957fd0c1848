"""What becomes of results in the scene: splats, meshes, renders, and the nodes behind them."""
