"""`python -m remask`, and `torchrun -m remask`, which finds a module where no script is installed."""

from remask.cli.main import main

if __name__ == "__main__":
    main()
