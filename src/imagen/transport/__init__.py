"""Who carries bytes: one file knows the HTTP library, one decides what is repeated."""
