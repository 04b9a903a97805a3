easydistill validate typos.jsonc || echo "exit code $?"
timeout -s KILL 20 easydistill run kd.jsonc || echo "exit code $?"         # the plug is pulled after 20 seconds
easydistill run kd.jsonc                                                   # goes on from there; row 7 is set aside
sed -i '7s/.*/{"instruction": "How do I sharpen a knife?"}/' rows.jsonl    # row 7 is mended
easydistill run kd.jsonc                                                   # asks about that row alone, trains again
