"""Models' servers: how each kind is asked, and what its stream means."""
