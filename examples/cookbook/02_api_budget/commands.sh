easydistill init quickstart        # for its prompts.json; yours takes its place
easydistill preview -n 1 kd.jsonc
easydistill plan kd.jsonc
easydistill run kd.jsonc --set dataset.max_samples=20
easydistill plan kd.jsonc
easydistill run kd.jsonc
