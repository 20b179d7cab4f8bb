"""The stage `ppo`: from prompts and rewards to a policy."""
