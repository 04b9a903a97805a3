easydistill init quickstart        # for its prompts.json; yours takes its place
easydistill run kd.jsonc
easydistill run kd.jsonc                                         # nothing is left to do
easydistill run kd.jsonc --set evaluation.max_new_tokens=32      # evaluates again, and nothing else
easydistill run kd.jsonc --set dataset.max_samples=70            # asks about ten rows more, and trains on all
