"""Other places for the ledger's entries: PostgreSQL, and Supabase through its REST API."""
