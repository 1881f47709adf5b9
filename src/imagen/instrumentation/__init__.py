"""Who watches: clocks and logs."""
