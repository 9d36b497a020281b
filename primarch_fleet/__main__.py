"""`python -m primarch_fleet` is the command `fleet`."""

from primarch_fleet.cli.main import main

if __name__ == "__main__":
    main()
