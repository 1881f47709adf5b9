"""Who remembers: one SQL schema, one writer. Only this package knows SQL."""
