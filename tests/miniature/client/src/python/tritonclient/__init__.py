"""A client in small."""
