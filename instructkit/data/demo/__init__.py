"""A small synthetic world of assistant tasks, with a judge; what the default recipes learn from."""
