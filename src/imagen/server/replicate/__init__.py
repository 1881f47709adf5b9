"""Replicate's own API: what its clients ask, answered by our core or passed on to the service."""
