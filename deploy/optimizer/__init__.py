"""Exact graph rewrites that compute the same function with fewer multiply-accumulates."""
