"""The proofs that two networks are the same, and the measures of how far apart they are."""
