"""What answers the calls of the API, one resource a file; `api.py` says which path is whose."""
