"""What both processes share: values, cameras, messages and file formats. Standard library and numpy only."""
