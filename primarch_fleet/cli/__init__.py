"""The command line `fleet`: the commands that the producers' package has itself."""
