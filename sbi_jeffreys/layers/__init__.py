"""Layers of the default flow, as zuko transforms that are fast for small networks."""
