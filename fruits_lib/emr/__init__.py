"""A cluster on Amazon EMR: planned, created, used and ended."""
