"""From stored events to weighted training items."""
