"""Handing out durable work: `local` for the processes of one machine."""
