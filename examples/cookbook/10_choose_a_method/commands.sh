easydistill init quickstart        # for its prompts.json; yours takes its place
easydistill run black_box.jsonc
easydistill run white_box.jsonc
easydistill run on_policy.jsonc
easydistill compare runs/black_box runs/white_box runs/on_policy -o methods.html
