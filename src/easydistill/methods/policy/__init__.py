"""PPO and GRPO: learning from rewards."""
