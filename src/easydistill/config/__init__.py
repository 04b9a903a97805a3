"""Typed configs and how they are read. Nothing in this package imports torch or touches the network."""
