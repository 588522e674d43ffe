"""Its HTTP side."""
