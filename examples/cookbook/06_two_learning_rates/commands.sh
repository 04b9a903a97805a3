easydistill run sft.jsonc --set training.learning_rate=1e-5 --set output_dir=runs/low
easydistill run sft.jsonc --set training.learning_rate=3e-5 --set output_dir=runs/high
easydistill compare runs/low runs/high -o learning_rates.html
