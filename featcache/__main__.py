"""python -m featcache."""

from featcache.cli.main import main

if __name__ == "__main__":
    main()
