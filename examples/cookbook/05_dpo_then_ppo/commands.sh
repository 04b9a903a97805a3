easydistill validate align.jsonc
easydistill plan align.jsonc
easydistill run align.jsonc
