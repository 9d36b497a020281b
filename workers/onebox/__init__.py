"""The fleet on one machine: `make up`, `make run`, and the provider simulator."""
