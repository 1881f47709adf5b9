"""Who watches: the clock, logs, and events for analytics."""
