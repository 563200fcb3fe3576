"""Files of other tools: what their user states, and what running them tells."""
