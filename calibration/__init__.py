"""Choice of precision: activation ranges and Q/DQ placement, without torch."""
