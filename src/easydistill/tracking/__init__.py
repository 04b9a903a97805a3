"""Where a run's figures are shown besides its own files: TensorBoard, trackio, W&B, MLflow, third parties' sinks.

What the reporter and the runner write down anyway is what a sink is given: `metrics.jsonl` (losses, rewards, held-out
figures), `progress.jsonl` (rates and spending) and the manifests of finished stages (evaluation, totals). Each sink has
a process of its own (`child.py`), which follows these files (`follow.py`). So nothing waits for it; only the command
that leads a run tracks it, however many processes train; figures of the time before a sink was named are shown as well;
and a pipeline's jobs need nothing of their own.

A run that is killed may have logged steps after its last checkpoint, which the resumed one logs again. Records within
the run directory are therefore written anew at each start, and others get a step only when it is final.
"""
