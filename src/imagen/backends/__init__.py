"""How imagen reaches the world: one folder or file for each kind of backend, found through entry points."""
