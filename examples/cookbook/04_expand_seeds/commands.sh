easydistill plan expand.jsonc
easydistill preview -n 1 expand.jsonc
easydistill run expand.jsonc --set jobs.expand.synthesis.num_output_samples=10
easydistill run expand.jsonc
