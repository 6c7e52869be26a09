"""Raw input: files, blocks of lines, and how lines are parsed."""
