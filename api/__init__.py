"""The HTTP API in front of the fleet, in the form of OpenAI's API: `fleet serve`."""
