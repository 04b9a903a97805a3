"""Copies of a teacher in workers: processes of this machine, or actors of a Ray cluster.

The run's own process hands out requests and journals outcomes (`teacher.py`, with `board.py` to know who has what). A
worker (`worker.py`) runs an ordinary teacher; `processes.py` and `ray.py` start workers and carry messages.

Requests form the same batches, and answers have the same seeds, however many workers there are. If a worker dies, its
requests are asked again elsewhere and another takes its place.
"""
