"""The job `release`: rows become a dataset folder that `datasets.load_dataset` reads and that can be published.

- `config.py`: its sections.
- `layouts/`: rows → columns, one file a schema.
- `shards.py`: columns → Parquet files of one schema and limited size.
- `census.py`: what the rows hold, counted.
- `lineage.py`: what the manifests of the runs that made the rows say of them.
- `card.py`: the dataset card.
- `stage.py`, `push.py`: the stages.
"""
