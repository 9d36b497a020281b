"""`fleet batch`: the lines of an OpenAI batch file through the fleet, on any lane."""
