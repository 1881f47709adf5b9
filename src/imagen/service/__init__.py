"""What imagen does: the use cases. A file is one of them, or one step on the way of a request.

docs/architecture.md tells the way of one request, file by file, and lists them all.
"""
