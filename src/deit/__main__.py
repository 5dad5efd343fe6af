"""`python -m deit`, which is also how torchrun starts the command: `torchrun --nproc-per-node 2 -m deit train ...`."""

from deit.cli import main

if __name__ == "__main__":
    main()
