"""`python -m easydistill` is the `easydistill` command."""

from easydistill.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
