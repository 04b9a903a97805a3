easydistill init quickstart        # for its prompts.json; yours takes its place
python distil.py
