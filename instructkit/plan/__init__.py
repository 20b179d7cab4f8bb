"""What a run will take, before it is started: steps, memory, time, disk."""
