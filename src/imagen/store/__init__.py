"""Who remembers: one SQL schema, one writer. Nothing else knows the SQL of our own database."""
