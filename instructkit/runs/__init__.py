"""What a run leaves on disk: its record, where it came from, and what was logged on the way."""
