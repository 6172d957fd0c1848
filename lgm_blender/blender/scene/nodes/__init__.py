"""Node groups and materials as Python: the Python is the source of truth, no .blend is shipped."""
