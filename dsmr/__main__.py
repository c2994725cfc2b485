"""Entry of `python -m dsmr`: the same as the command `dsmr`."""

from dsmr.cli import main

if __name__ == "__main__":  # worker processes import this module anew and must not start over
    main()
