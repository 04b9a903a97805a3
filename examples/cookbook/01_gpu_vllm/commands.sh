easydistill init quickstart        # for its prompts.json; yours takes its place
easydistill doctor --quick
easydistill validate kd.jsonc
easydistill plan kd.jsonc
easydistill run kd.jsonc
