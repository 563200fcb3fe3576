"""Equivalence proofs of networks and graphs, and measures of their numeric difference."""
