"""PPO and GRPO: training by rewards."""
