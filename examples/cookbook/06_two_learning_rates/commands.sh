easydistill sweep sft.jsonc --grid training.learning_rate=1e-5,3e-5 --dry-run
easydistill sweep sft.jsonc --grid training.learning_rate=1e-5,3e-5
