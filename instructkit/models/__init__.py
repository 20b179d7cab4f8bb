"""Models: where they are, how they are loaded, what they answer and how they are scored."""
