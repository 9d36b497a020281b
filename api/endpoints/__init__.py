"""The endpoints, a module for each of OpenAI's."""
