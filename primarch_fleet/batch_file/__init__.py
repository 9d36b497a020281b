"""The lines of an OpenAI batch file through the fleet: for `fleet batch` and the HTTP API."""
