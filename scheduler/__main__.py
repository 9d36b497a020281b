"""`python -m scheduler COMMAND` is `fleet COMMAND`, under its older name."""

from scheduler.cli.main import main

if __name__ == "__main__":
    main()
