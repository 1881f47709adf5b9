"""Who carries bytes: messages, the connections that carry them, and one decision about what is repeated."""
