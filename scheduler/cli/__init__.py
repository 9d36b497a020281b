"""The commands of `fleet` that need the fleet's own packages: for operators."""
