"""``python -m cyclegan_batch``: the same command as ``cyclegan-batch``."""

from .cli import main

if __name__ == "__main__":
    main()
