"""`python -m deit`, which is also how torchrun starts the command: `torchrun --nproc-per-node 2 -m deit train ...`."""

from deit.cli import command

if __name__ == "__main__":
    command()
