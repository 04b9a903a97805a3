easydistill validate sft.jsonc
easydistill preview -n 1 sft.jsonc
easydistill plan sft.jsonc
easydistill run sft.jsonc
python ask.py "When do I prune an apple tree?"
