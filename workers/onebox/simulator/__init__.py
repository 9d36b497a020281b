"""A provider simulator: OpenAI's HTTP API without a model; answers are computed from the request.

It simulates chat completions (streamed too), embeddings, models, files, batches and their webhooks.
Prices, latency and faults come from a `Profile`. An answer depends only on its request, unless a
`Script` says another. The simulator keeps the requests that it received for tests to read.

Tokens are counted by one rule: a text has ceil(UTF-8 bytes / 4) tokens, a chat message 4 more, a
chat request 3 more, a message part that is not text 85, and the `tools` of a request as many as
their JSON text. A list of token ids has its length.

Not simulated: audio, images, moderation, the Responses API, context windows of chat models, rate
limits other than fault rules (so neither the hourly cap on new batches), cached and reasoning
tokens (0 without a script), projects and organisations. Tools are called only when `tool_choice`
forces it. For JSON schemas, `sample_value` lists the supported keywords.
"""

from workers.onebox.simulator.clock import Clock, SystemClock, VirtualClock
from workers.onebox.simulator.profile import Profile
from workers.onebox.simulator.script import Script
from workers.onebox.simulator.server import Simulator

__all__ = ["Clock", "Profile", "Script", "Simulator", "SystemClock", "VirtualClock"]
