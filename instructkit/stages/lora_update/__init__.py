"""The stage `lora-update`: from feedback to an adapter."""
