"""Music analysis: what a performance is like, and whether a corpus holds the like."""
