"""`python -m llamamath`."""

from llamamath.cli.main import main

if __name__ == "__main__":
    main()
