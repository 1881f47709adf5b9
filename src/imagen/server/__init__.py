"""The HTTP gateway: one file a face. Read `app` first, then `operation`, then the face that you need."""
