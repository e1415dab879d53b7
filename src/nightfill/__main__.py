"""`python -m nightfill`."""

from nightfill.cli import main

if __name__ == "__main__":
    main()
