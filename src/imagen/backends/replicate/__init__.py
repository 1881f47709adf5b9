"""Replicate: files that know its protocol without any I/O, and files that speak it."""

from imagen.backends.replicate.backend import ReplicateBackend

build_backend = ReplicateBackend
"""The entry point of type `replicate`."""
