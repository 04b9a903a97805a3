easydistill validate typos.jsonc || echo "exit code $?"
easydistill run kd.jsonc & until grep -qs "stage train starts" runs/kd/log.txt; do sleep 0.2; done; kill -9 $!  # a power cut
easydistill run kd.jsonc
sed -i '7s/.*/{"instruction": "How do I sharpen a knife?"}/' rows.jsonl
easydistill run kd.jsonc
