"""`python -m imagen` is the command `imagen`."""

from imagen.cli.main import main

if __name__ == "__main__":
    main()
