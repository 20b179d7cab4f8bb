"""Users' feedback: what it asks for, and whether an update may be promoted."""
