"""PPO: tensor maths on the lowest floor, a trainer on TRL above it; no recipes, no runs."""
