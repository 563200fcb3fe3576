"""Everything that chooses precision: activation ranges and Q/DQ placement. Knows no torch."""
