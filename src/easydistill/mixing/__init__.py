"""The job `mix`: rows of several inputs become one set of rows.

- `config.py`: its section; how many rows of each input are asked for.
- `allotment.py`: these wishes, and how many rows there are → how many are taken.
- `pool.py`: the inputs' rows on disk, each with an id that no other has.
- `drawing.py`: which rows are taken, and their order.
- `stage.py`: the stage.
"""
