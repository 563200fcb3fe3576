"""The exact rewrites, one file each."""
