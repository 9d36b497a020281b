"""A provider simulator: OpenAI's HTTP API, answered by arithmetic instead of a model.

Simulated: chat completions (also streamed), embeddings, models, files, batches and their webhooks,
with prices, latency and faults taken from a `Profile`. Every answer is a function of its request
alone.

Usage is counted by one rule: a text costs ceil(UTF-8 bytes / 4) tokens, a chat message 4 more, a
chat request 3 more, a part of a message that is not text 85, and the `tools` of a request what
their JSON text costs. A list of token ids costs its length.

Not simulated: logprobs, audio, images, moderation, the Responses API, context windows of chat
models, rate limits other than fault rules (so neither the hourly cap on new batches), cached and
reasoning tokens (always 0), projects and organisations. Tools are called only when `tool_choice`
forces one; JSON schemas are answered for the common keywords only (see `sample`).
"""

from workers.onebox.simulator.clock import Clock, SystemClock, VirtualClock
from workers.onebox.simulator.profile import Profile
from workers.onebox.simulator.server import Simulator

__all__ = ["Clock", "Profile", "Simulator", "SystemClock", "VirtualClock"]
