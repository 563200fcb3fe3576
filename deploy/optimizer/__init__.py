"""Exact rewrites: the same function, fewer multiply-accumulates."""
