"""The exact rewrite passes, one per file."""
